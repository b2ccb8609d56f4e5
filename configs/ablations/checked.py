"""Which of a teacher's samples to keep: the first, one that most agree with, or one whose steps check?

Judges of steps (arXiv 2305.20050) and self-consistency (arXiv 2203.11171) as filters on what is trained on,
at equal packed positions. The teacher makes a slip on half of the questions, in each sample on its own, as a
model does not; what it writes after the slip follows from it. Some slips lead to the right answer, which
agreement lets through and the check of steps does not. `agreed` and `checked` keep one of three samples, or
none of the question. Students, family (`tracking`, four swaps) and wording are those of `crossover`.

    python -m experiments.ablate --config=configs/ablations/checked.py --workdir=runs/checked --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.config_arms import complete_set, merged
from orca_jax.configs.ablations import crossover
from orca_jax.configs.arguments import parse

QUESTION = (
    "Which of a teacher's samples to train on, when half of them have a slip, at equal packed positions?"
)
SLIPS = 0.5
ARMS = {
    "first": ("the first sample", {}),
    "agreed": ("what most of three samples say", dict(samples=3, filters=("outvoted", "spare"))),
    "checked": ("the first of three whose steps check", dict(samples=3, filters=("missteps", "later"))),
}


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    small = parse(arg).runlocal
    config = crossover.get_config("runlocal" if small else "")
    of_steps = crossover.condition("tracking", 4, small)
    own = of_steps["arms"]["explanations"]  # lengths, rows and steps of true explanations
    base = merged(merged(config.base.to_dict(), of_steps["changes"]), own)
    share = next(one["share"] for one in base["teachers"] if one["name"] == "explanations")
    base["puzzles"]["per_family"] = round(share * base["puzzles"]["per_family"])
    base["teachers"] = [
        dict(name=name, message=7, shown=1, error_rate=SLIPS, **knobs) for name, (_, knobs) in ARMS.items()
    ]
    [stage] = base["curriculum"]
    curricula = {name: [dict(stage, name=name, datasets={name: 1.0})] for name in ARMS}
    base["curriculum"] = curricula["first"]
    arms = [
        dict(name=name, note=note, changes=dict(curriculum=curricula[name]))
        for name, (note, _) in ARMS.items()
    ]
    # Predicted before any run, in points: slips fall on all steps alike, so that the true step stays the most
    # frequent one and greedy decoding finds it; what a filter saves is small, and both save about the same.
    hypotheses = [
        dict(name="slips cost little", arm="checked", minus="first", at_least=-2, at_most=15),
        dict(name="checking is not less", arm="checked", minus="agreed", at_least=-5, at_most=10),
        dict(name="checked steps are learnt", arm="checked", at_least=80),
    ]
    made = ConfigDict(dict(name="checked", question=QUESTION, baseline="first", base=base, arms=arms))
    made.update(seeds=config.seeds, results=config.results, hypotheses=hypotheses)
    return complete_set(made)
