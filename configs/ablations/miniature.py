"""The common part of the miniature ablations: puzzles, oracles, the student, and lengths.

Three families, chosen by a pilot (docs/findings.md): each is above chance and below the ceiling after these
steps. The third difficulty is evaluated and never trained on. The apprentice skips a tenth of the steps and
errs on a tenth of the puzzles; the expert answers a fifth of the queries, as GPT-4 did (paper, section
3.1.3).
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from orca_jax.config_arms import complete_set
from orca_jax.configs import mini
from orca_jax.configs.arguments import parse

FAMILIES = ("boolean_expressions", "object_counting", "dyck_languages")
STEPS = 1000
VOCABULARY = 1152  # the traces of three families cannot fill the 1536 ids of the mini
EMPTY, OWN = "puzzles-message-1", "puzzles-message-7"
OUTCOME = "Under the message it was trained for"
RESULTS = [
    dict(title=OUTCOME, evaluation=OWN),
    dict(title="Under the empty message", evaluation=EMPTY),
]
APPRENTICE = dict(name="apprentice", brevity=0.1, error_rate=0.1, bare_reply="The answer is {answer}.")
EXPERT = dict(name="expert", share=0.2)
ANSWERS = dict(name="answers", message=1)
TEACHERS = [ANSWERS, APPRENTICE, EXPERT]  # of sets with no others, so that they can share runs


def stage(name: str, share: float = 1.0, **more: Any) -> dict[str, Any]:
    """A stage on one data set, or on `datasets`, over a share of the steps."""
    steps = round(share * STEPS)
    return dict(name=name, datasets={name: 1.0}, steps=steps, learning_rate=1.5e-3, warmup_steps=50) | more


def two_stages(first: str, second: str, share: float = 0.8) -> list[dict[str, Any]]:
    """A share of the steps on one data set, the rest on the other: as the paper's 160 and 40 hours.

    The learning rate falls to half in the first stage and to its end in the second, whichever is longer.
    """
    return [stage(first, share, final_fraction=0.5), stage(second, 1 - share, warmup_steps=20)]


def shrunk(stages: list[dict[str, Any]], steps: int = STEPS) -> list[dict[str, Any]]:
    """A curriculum of so many steps in 4 of them; a stage that is measured in epochs has 4 too."""
    short = [dict(each, steps=round(4 * (each["steps"] or steps) / steps), warmup_steps=1) for each in stages]
    for each in short:
        each.pop("epochs", None)
    return short


def arm(
    name: str, note: str, curriculum: list[dict[str, Any]], *, message: int = 7, **changes: Any
) -> dict[str, Any]:
    """An arm whose outcome is its evaluation under its own system message."""
    entry = dict(name=name, note=note, changes=dict(curriculum=curriculum, **changes))
    return entry if message == 7 else {**entry, "evaluations": {OUTCOME: f"puzzles-message-{message}"}}


def arm_set(
    arg: str,
    name: str,
    question: str,
    teachers: list[dict[str, Any]],
    arms: list[dict[str, Any]],
    *,
    also_empty: bool = True,
    per_family: int = 3500,
    row_length: int = 512,
    batch_rows: int = 4,
) -> ConfigDict:
    """A set of arms in miniature, the first of which is the baseline.

    Each arm is evaluated under its own message, and under the empty one unless `also_empty` is False.

    Args:
      arg: `variant=default`, `runlocal` (seconds).
    """
    small = parse(arg).runlocal
    config = ConfigDict(dict(name=name, question=question, baseline=arms[0]["name"]))
    config.base = mini.get_config("runlocal" if small else "")
    config.base.update(teachers=teachers, curriculum=[stage(teachers[0]["name"])])
    config.base.puzzles.families = FAMILIES
    config.base.evaluation.difficulties = (1, 2, 3)
    if small:
        for changed in (config.base, *(entry["changes"] for entry in arms)):
            changed["curriculum"] = shrunk(changed["curriculum"])
    else:
        config.base.student.vocab_size = VOCABULARY
        config.base.evaluation.per_family, config.base.puzzles.per_family = 150, per_family
        config.base.data.row_length, config.base.train.batch_rows = row_length, batch_rows
    config.results = RESULTS if also_empty else RESULTS[:1]
    for entry in arms:
        own = int(entry.get("evaluations", {}).get(OUTCOME, OWN).rpartition("-")[2])
        asked = tuple(sorted({own, 1} if also_empty else {own}))
        entry["changes"]["evaluation"] = dict(messages=asked)
    config.arms = arms
    return complete_set(config)
