"""Right where the student goes wrong: traces of a teacher that errs, off-policy and on-policy.

Theory: imitating a noisy expert off-policy needs samples exponential in the horizon, on-policy polynomially
many (arXiv 2606.30923). Students and wording are those of `crossover`; a condition is one family at one k
and one noise, the share of the teacher's solutions that have one mistake, carried through. Arms have the
same packed positions, see an example about once, and have one learning-rate schedule: `off_policy`, the
teacher's traces; `on_policy`, six rounds in which the student answers the same questions, a right reply
stays, and from the first wrong line on the teacher writes, erring there as it would; `both`, half of each. A
clean teacher's mended trace is its own trace, so without noise arms differ by the draw alone: the control.

    python -m experiments.ablate --config=configs/ablations/onpolicy.py --workdir=runs/onpolicy
"""

from typing import Any

from ml_collections import ConfigDict

from orca_jax.config_arms import complete_set
from orca_jax.configs.ablations import crossover
from orca_jax.configs.arguments import parse

QUESTION = "Do traces that are mended where the student goes wrong teach more than a noisy teacher's own?"
ARMS = {
    "off_policy": ("the teacher's traces", 0.0),
    "on_policy": ("the student's, mended by the teacher", 1.0),
    "both": ("half of each", 0.5),
}
NOISE = (0, 10, 20)  # per cent of the teacher's solutions
# Family and k, and noise.
CONDITIONS = {
    "tracking": [("tracking", k, noise) for k in (2, 4, 8) for noise in NOISE],
    "findings": [("tracking", 4, noise) for noise in (0, 20)],
    "serial": [
        (family, k, noise)
        for family in ("nested_booleans", "pointer_chasing")
        for k in (4, 8)
        for noise in NOISE
    ],
}
# Written down before any student of this set was trained, in points of accuracy, for each arm on policy minus
# `off_policy`: nothing without noise (students of `crossover` vary by ten points between seeds), else a gain.
PREDICTED = {0: (-10.0, 10.0), 10: (0.0, 15.0), 20: (0.0, 25.0)}
ROUNDS = 6


def get_config(arg: str = "") -> ConfigDict:
    """`variant=tracking|findings|serial`, `runlocal` (seconds)."""
    args = parse(arg, variant=tuple(CONDITIONS))
    config = ConfigDict(dict(name="onpolicy", question=QUESTION, baseline="off_policy"))
    first = crossover.stage("teacher", 6 if args.runlocal else crossover.steps_at(4))
    config.base = crossover.base(teachers=[teacher(0)], curriculum=[first])
    config.results = [dict(title="Accuracy", evaluation="puzzles-message-1")]
    config.arms = [dict(name=name, note=note) for name, (note, _) in ARMS.items()]
    config.conditions = [_condition(*one, args.runlocal) for one in CONDITIONS[args.variant]]
    if args.runlocal:
        config.base["evaluation"].update(per_family=4, max_tokens=16)
        config.conditions, config.seeds = config.conditions[:1], (0,)
    config.hypotheses = [
        dict(
            name=f"{name}: {arm} - off_policy",
            conditions=(name,),
            arm=arm,
            minus="off_policy",
            at_least=PREDICTED[noise][0],
            at_most=PREDICTED[noise][1],
        )
        for name, (_, _, noise) in zip([one["name"] for one in config.conditions], CONDITIONS[args.variant])
        for arm in ("on_policy", "both")
    ]
    return complete_set(config)


def teacher(noise: int) -> dict[str, Any]:
    """Its traces show no system message; the seventh asks an oracle for steps."""
    return dict(name="teacher", message=7, shown=1, error_rate=noise / 100)


def _condition(family: str, k: int, noise: int, small: bool) -> dict[str, Any]:
    """With as many questions as an arm sees once, and rounds of as many as their rows hold."""
    steps = ROUNDS * (1 if small else round(crossover.steps_at(k) / ROUNDS))
    row, rows, examples = crossover.packed(family, k, explained=True)
    arms: dict[str, Any] = {}
    for name, (_, share) in ARMS.items():
        stage = crossover.stage("teacher", steps)
        if share:
            questions = round(share * steps * examples / ROUNDS)
            stage["on_policy"] = dict(rounds=ROUNDS, questions=questions, share=share, max_tokens=row)
        arms[name] = dict(curriculum=[stage])
    changes = dict(
        puzzles=dict(families=(family,), difficulties=(k,), per_family=round(1.04 * steps * examples)),
        teachers=[teacher(noise)],
        data=dict(row_length=row),
        train=dict(batch_rows=rows),
        evaluation=dict(difficulties=(k,)),
    )
    # With k at its end, so that charts are over k.
    return dict(name=f"{family}-noise{noise}-{k}", changes=changes, arms=arms)
