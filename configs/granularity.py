"""Two real teachers' explanations at three granularities beside answers alone, on the same questions.

Paper: sections 3.1.3 and 6.1 with Table 10, with teachers that are language models and equal questions, which
the paper has not. Data: EIT-NLP/Distilling-CoT-Reasoning (Apache-2.0), joined by question into a Parquet
file with a column a teacher and level: 4,949 training questions of OpenBookQA (`answers`, LLaMA-3-70B, GPT-4o
at levels 1, 3 and 6) and 1,997 of StrategyQA (`answers`, GPT-4o), and two test sets, on which nothing is
trained. `data` is their folder, `init` SmolLM2-135M-Instruct (`make student` fetches it). All arms have
the same steps and packed positions, and differ in curriculum alone.

    python -m experiments.ablate --workdir=runs/levels \\
        --config=configs/granularity.py:variant=laptop,data=FOLDER

`laptop` has level 1, three arms, one seed, and 24,576 packed positions an arm, in 20 minutes on two cores.
`openbookqa` and `strategyqa` have three levels, three seeds and 1,048,576 positions an arm, for a GPU:
docs/ablations.md.

Predicted before any run: a student of this size answers the test at chance (25 of 100) whatever it is taught
in so few tokens, so that no arm of `laptop` is 10 points from chance, or from another. So it came out
(docs/findings.md).
"""

from typing import Any

from ml_collections import ConfigDict

from orca_jax.config_arms import complete_set
from orca_jax.configs.arguments import TINY, parse
from orca_jax.configs.smollm2 import INIT

QUESTION = "Do real teachers' explanations beat answers, and does their order matter, on the same questions?"
LEVELS = (1, 3, 6)
# Training file, test file, labels, and the teachers from the weaker to the stronger, by the names of columns.
SETS: dict[str, tuple[str, str, tuple[str, ...], dict[str, str]]] = {
    "openbookqa": (
        "openbookqa.parquet",
        "openbookQA_test.json",
        ("A", "B", "C", "D"),
        {"weaker": "llama3_70b", "stronger": "gpt4o"},
    ),
    "strategyqa": ("strategyqa.parquet", "strategyQA_test.json", ("True", "False"), {"stronger": "gpt4o"}),
}
NOTES = {
    "answers": "the right answer alone",
    "weaker": "LLaMA-3-70B's explanations",
    "stronger": "GPT-4o's explanations",
    "progressive": "LLaMA-3-70B's, then GPT-4o's",
    "reversed": "GPT-4o's, then LLaMA-3-70B's",
}
LAPTOP = ("answers", "weaker", "stronger")
POSITIONS = 2048  # a step


def get_config(arg: str = "") -> ConfigDict:
    """`variant=openbookqa|strategyqa|laptop`, `data=FOLDER`, `init=FOLDER` (weights), `runlocal` (seconds).

    With `runlocal` and no `init` the student is a tiny new one.
    """
    args = parse(arg, variant=("openbookqa", "strategyqa", "laptop"), paths=("init", "data"))
    laptop = args.variant == "laptop"
    name = "openbookqa" if laptop else args.variant
    train, test, labels, models = SETS[name]
    folder = args.data or "granularity"
    curricula = two_teachers(4 if args.runlocal else 12 if laptop else 512)
    known = {"answers", *models} | ({"progressive", "reversed"} if len(models) > 1 else set())
    arms = [one for one in (LAPTOP if laptop else NOTES) if one in known]
    config = ConfigDict(dict(name=f"granularity-{args.variant}", question=QUESTION, baseline="answers"))
    config.seeds = (0,) if laptop or args.runlocal else (0, 1, 2)
    config.base = base(args.init, args.runlocal)
    config.base.update(
        teachers=_teachers(f"{folder}/{train}", models, LEVELS[0]),
        choices=[
            dict(name=name, path=f"{folder}/{test}", question=["instruction"], answer="label", labels=labels)
        ],
        curriculum=curricula["answers"],
    )
    config.results = [dict(title="Accuracy", evaluation=f"{name}-robust")]
    config.arms = [dict(name=one, note=NOTES[one], changes=dict(curriculum=curricula[one])) for one in arms]
    config.conditions = [
        dict(name=f"level-{level}", changes=dict(teachers=_teachers(f"{folder}/{train}", models, level)))
        for level in (LEVELS[:1] if laptop else LEVELS)
    ]
    if laptop:
        pairs = [*((one, "chance") for one in arms), *((one, "answers") for one in arms[1:])]
        config.hypotheses = [
            dict(name=f"{one} - {other}", arm=one, minus=other, at_least=-10, at_most=10)
            for one, other in pairs
        ]
    return complete_set(config)


def _teachers(path: str, models: dict[str, str], level: int) -> list[dict[str, Any]]:
    """The right answers, and every model's explanations of a level, as columns of one file."""
    columns = {"answers": "answers"} | {name: f"{model}_level{level}" for name, model in models.items()}
    return [
        dict(name=name, kind="file", path=path, columns=dict(answer=column, target="answers"))
        for name, column in columns.items()
    ]


def two_teachers(steps: int) -> dict[str, list[dict[str, Any]]]:
    """Curricula of so many steps: each teacher alone, and half of them on each, one after the other."""

    def stage(name: str, share: float = 1.0) -> dict[str, Any]:
        own = round(share * steps)
        return dict(
            name=name, datasets={name: 1.0}, steps=own, learning_rate=1e-3, warmup_steps=max(1, own // 10)
        )

    curricula = {name: [stage(name)] for name in ("answers", "weaker", "stronger")}
    curricula["progressive"] = [stage("weaker", 0.5), stage("stronger", 0.5)]
    curricula["reversed"] = curricula["progressive"][::-1]
    return curricula


def base(init: str, small: bool) -> ConfigDict:
    """SmolLM2-135M-Instruct with LoRA on trace files, without their teachers; `small`: a tiny new student."""
    config = ConfigDict(dict(name="base", puzzles={}, optimizer={}, mesh={}))
    # Of every arm's traces few are held out: on two cores they would take as long as half of the steps.
    config.data = dict(row_length=512, max_segments=64, overlong="drop", validation_fraction=0.002)
    config.student = dict(init=init or INIT, vocab_size=0, scan_layers=False, lora=dict(rank=16, alpha=32.0))
    config.train = dict(batch_rows=POSITIONS // 512, checkpoint_every=50, log_every=5)
    config.evaluation = dict(messages=(1,), max_tokens=192, max_length=512, batch_size=32)
    if small:
        config.evaluation.update(max_tokens=16)
        if not init:
            config.student = TINY
    return config
