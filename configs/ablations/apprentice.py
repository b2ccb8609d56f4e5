"""What makes an intermediate teacher useful? Brevity, difficulty and errors of the apprentice, one at a time.

Paper: section 3.1.3 names a smaller gap in capability and shorter, easier answers, without separating them.
Each arm has the apprentice's stage and then the expert's; they differ in the apprentice. `as_expert` is an
apprentice without errors that answers all queries: the effect of more data alone.

    python -m experiments.ablate --config=configs/ablations/apprentice.py --workdir=runs/apprentice --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import EXPERT, arm, arm_set, two_stages

APPRENTICES = {
    "as_expert": ("no fault", {}),
    "brief": ("half of the steps left out", dict(brevity=0.5)),
    "easy": ("guesses at difficulty 2", dict(reach=1)),
    "wrong": ("errs on a fifth", dict(error_rate=0.2)),
    "all_three": ("all of these", dict(brevity=0.5, reach=1, error_rate=0.2)),
}


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    teachers = [EXPERT, *(dict(name=name, **knobs) for name, (_, knobs) in APPRENTICES.items())]
    arms = [arm(name, note, two_stages(name, "expert")) for name, (note, _) in APPRENTICES.items()]
    question = "Which of an apprentice's faults costs the student most?"
    return arm_set(arg, "apprentice", question, teachers, arms)
