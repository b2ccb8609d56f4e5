"""The common part of the miniature ablations: puzzles, oracles, the student, and lengths.

Three families, chosen by a pilot (docs/findings.md): each is above chance and below the ceiling after these
steps. The third difficulty is evaluated and never trained on. The apprentice skips a tenth of the steps and
errs on a tenth of the puzzles; the expert answers a fifth of the queries, as GPT-4 did (paper, section
3.1.3).
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from orca_jax.config import complete_set
from orca_jax.configs import mini

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


def base(teachers: list[dict[str, Any]], runlocal: bool) -> ConfigDict:
    """The base config; each arm sets its curriculum."""
    config = mini.get_config("runlocal" if runlocal else "")
    config.puzzles.families = FAMILIES
    config.teachers = teachers
    config.evaluation.update(difficulties=(1, 2, 3), per_family=150)
    config.curriculum = [stage(teachers[0]["name"], runlocal=runlocal)]
    if runlocal:
        config.evaluation.update(per_family=3, max_tokens=16)
    else:
        config.student.vocab_size = VOCABULARY
    return config


def stage(name: str, share: float = 1.0, *, runlocal: bool, **more: Any) -> dict[str, Any]:
    """A stage on one data set, or on `datasets`, over a share of the steps."""
    steps = 4 if runlocal else STEPS
    given = dict(name=name, datasets={name: 1.0}, steps=round(share * steps), learning_rate=1.5e-3)
    return {**given, "warmup_steps": 1 if runlocal else 50, **more}


def two_stages(first: str, second: str, share: float = 0.8, *, runlocal: bool) -> list[dict[str, Any]]:
    """A share of the steps on one data set, the rest on the other: as the paper's 160 and 40 hours.

    The learning rate falls to half in the first stage and to its end in the second, whichever is longer.
    """
    return [
        stage(first, share, runlocal=runlocal, final_fraction=0.5),
        stage(second, 1 - share, runlocal=runlocal, warmup_steps=1 if runlocal else 20),
    ]


def once(name: str, *, runlocal: bool) -> dict[str, Any]:
    """A stage of one pass over a data set."""
    given = stage(name, runlocal=runlocal)
    return given if runlocal else {**given, "steps": 0, "epochs": 1}


def arm(
    name: str, note: str, curriculum: list[dict[str, Any]], *, message: int = 7, **changes: Any
) -> dict[str, Any]:
    """An arm whose outcome is its evaluation under its own system message."""
    entry = dict(name=name, note=note, changes=dict(curriculum=curriculum, **changes))
    return entry if message == 7 else {**entry, "evaluations": {OUTCOME: f"puzzles-message-{message}"}}


def arm_set(
    name: str,
    question: str,
    teachers: list[dict[str, Any]],
    arms: list[dict[str, Any]],
    *,
    runlocal: bool,
    per_family: int = 3500,
    also_empty: bool = True,
) -> ConfigDict:
    """A set of arms in miniature, the first of which is the baseline.

    Each arm is evaluated under its own message, and under the empty one unless `also_empty` is False.
    """
    config = ConfigDict(dict(name=name, question=question, baseline=arms[0]["name"]))
    config.base = base(teachers, runlocal)
    if not runlocal:
        config.base.puzzles.per_family = per_family
    config.results = RESULTS if also_empty else RESULTS[:1]
    for entry in arms:
        own = int(entry.get("evaluations", {}).get(OUTCOME, OWN).rpartition("-")[2])
        asked = tuple(sorted({own, 1} if also_empty else {own}))
        entry["changes"]["evaluation"] = dict(messages=asked)
    config.arms = arms
    return complete_set(config)
