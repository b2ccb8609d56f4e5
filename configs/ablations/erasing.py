"""Prompt erasing: the teacher sees a detailed system message, the student does not.

Orca 2 (arXiv 2311.11045): the teacher's detailed system message is replaced by a generic one in the
student's data. All arms learn the same steps; they differ in the message before them: the
teacher's own, one generic message, or none.

    python -m experiments.ablate --config=configs/ablations/erasing.py --workdir=runs/erasing --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import arm, arm_set, stage

SHOWN = {"told": (7, "the teacher's message"), "generic": (2, "a generic message"), "none": (1, "no message")}


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    teachers = [dict(name=name, message=7, shown=shown) for name, (shown, _) in SHOWN.items()]
    arms = [arm(name, note, [stage(name)], message=shown) for name, (shown, note) in SHOWN.items()]
    question = "Does a student that is not told how to answer learn the steps as well?"
    return arm_set(arg, "erasing", question, teachers, arms, also_empty=False)
