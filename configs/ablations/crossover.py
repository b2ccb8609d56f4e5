"""When do explanations beat answers? Four kinds of traces on tasks that need k steps, and on some that need none.

Paper: section 6.1 with Table 10 claims that explanations teach more than answers do; theory says where they
must. A transformer of fixed depth cannot compose k swaps, follow k pointers or reduce k nested brackets without
writing them down (arXiv 2402.12875, 2503.02854), and need not write to count. The students are small (0.17M
parameters) and the wording compact, so that one takes about a minute of one core; every condition is one
family at one k. Arms have the same packed positions, and differ in their traces alone: `answers`;
`explanations`, true steps on all questions; `placebo`, the steps of another puzzle before the right answer
(arXiv 2505.13775); `filler`, a dot for each of their words (arXiv 2404.15758).

    python -m experiments.ablate --config=configs/ablations/crossover.py:variant=tracking --workdir=runs/crossover
"""

from random import Random
from typing import Any

from ml_collections import ConfigDict

from orca_jax.config import complete_set
from orca_jax.configs.arguments import parse
from orca_jax.queries.puzzles import FAMILIES

QUESTION = "When do explanations beat answers, at equal packed positions?"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "answers": ("the answer alone", dict(style="bare")),
    "explanations": ("true steps, then the answer", {}),
    "placebo": ("another puzzle's steps, then the right answer", dict(steps="placebo")),
    "filler": ("as many dots, then the answer", dict(steps="filler")),
}
CONDITIONS = {
    "tracking": [("tracking", k) for k in (2, 4, 5, 6, 8)],
    "serial": [
        (family, k) for family in ("tracking", "nested_booleans", "pointer_chasing") for k in (2, 4, 6, 8)
    ],
    "findings": [("tracking", k) for k in (2, 5)],
}
CHANCE = {"tracking": 20, "nested_booleans": 50, "pointer_chasing": 10}
# Written down before the runs, in points of accuracy: (condition, arm, other arm) to the lowest and highest
# difference. Where steps are needed (k of 4 and more), explanations reach 80, and all else is within ten points
# of chance; where they are not, answers are as good or up to 15 better.
PREDICTED: dict[tuple[str, str, str], tuple[float, float]] = {
    (f"{family}-{k}", "explanations", other): (80 - (chance + 10), 100 - (chance - 10))
    for family, chance in CHANCE.items()
    for k in (4, 5, 6, 8, 12)
    for other in ("answers", "placebo", "filler")
} | {
    (f"{family}-{k}", "explanations", "answers"): (-15, 0)
    for family in ("object_counting", "dyck_languages")
    for k in (1, 2, 3)
}
POSITIONS = 1000  # a step, nearly: whole examples


def get_config(arg: str = "") -> ConfigDict:
    """`variant=tracking|serial|controls|findings`, `runlocal` (seconds)."""
    args = parse(arg, variant=tuple(CONDITIONS))
    config = ConfigDict(dict(name="crossover", question=QUESTION, baseline="answers"))
    config.base = dict(
        name="crossover",
        puzzles=dict(families=("tracking",), difficulties=(5,), per_family=1000, messages={"1": 1.0}),
        teachers=_teachers(),
        data=dict(tokenizer="words", layout="plain", max_segments=64, validation_fraction=0.0),
        student=dict(
            vocab_size=48, hidden_size=64, intermediate_size=192, num_layers=3, head_dim=16, scan_layers=False
        ),
        curriculum=[_stage("answers", 900)],
        optimizer=dict(weight_decay=0.1),
        train=dict(checkpoint_every=500, log_every=50),
        mesh={},
        evaluation=dict(per_family=300, messages=(1,), max_length=512, batch_size=100),
    )
    config.results = [dict(title="Accuracy", evaluation="puzzles-message-1")]
    config.arms = [dict(name=name, note=note) for name, (note, _) in ARMS.items()]
    config.conditions = [_condition(*one, args.runlocal) for one in CONDITIONS[args.variant]]
    if args.runlocal:
        config.conditions, config.seeds = config.conditions[:1], (0,)
    return complete_set(config)


def _teachers(**shares: float) -> list[dict[str, Any]]:
    """One a kind of trace. The traces show no system message; the seventh asks an oracle for steps."""
    return [
        dict(name=name, message=7, shown=1, share=shares.get(name, 1.0), **knobs)
        for name, (_, knobs) in ARMS.items()
    ]


def _stage(name: str, steps: int) -> dict[str, Any]:
    return dict(name=name, datasets={name: 1.0}, steps=steps, learning_rate=3e-3, warmup_steps=50)


def _condition(family: str, k: int, small: bool) -> dict[str, Any]:
    """A family at one k: rows of one example, as many as make the positions of a step, each seen once."""
    steps = 4 if small else 900 if k <= 5 else 1400
    puzzle = FAMILIES[family].generate(Random(0), k)
    question, answer = (len(text.replace("\n", " \n ").split(" ")) for text in (puzzle.question, "key value"))
    steps_said = sum(len(step.split()) + 1 for step in puzzle.steps)
    arms, questions = {}, {}
    for name in ARMS:
        # Beginning of sequence, question, line break, steps, answer and end of sequence; the last is no input.
        length = 1 + question + 1 + (0 if name == "answers" else steps_said) + answer
        rows = round(POSITIONS / length)
        arms[name] = dict(
            data=dict(row_length=length), train=dict(batch_rows=rows), curriculum=[_stage(name, steps)]
        )
        questions[name] = rows * steps
    shares = {name: min(1.0, 1.02 * count / questions["answers"]) for name, count in questions.items()}
    changes = dict(
        puzzles=dict(families=(family,), difficulties=(k,), per_family=questions["answers"]),
        teachers=_teachers(**shares),
        evaluation=dict(difficulties=(k,), max_tokens=steps_said + 16) | (dict(per_family=4) if small else {}),
    )
    return dict(name=f"{family}-{k}", changes=changes, arms=arms)
