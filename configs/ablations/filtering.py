"""Does leaving out wrong answers help? A teacher with errors, with and without a check against the target.

Orca-Math (arXiv 2402.14830) and SlimOrca keep the answers that agree with a known one; the paper filters
nothing. `clean` has a teacher without errors.

    python -m experiments.ablate --config=configs/ablations/filtering.py --workdir=runs/filtering --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import arm, arm_set, stage


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    teachers = [
        dict(name="unfiltered", error_rate=0.3),
        dict(name="filtered", error_rate=0.3, filters=("disagrees",)),
        dict(name="clean"),
    ]
    arms = [
        arm("unfiltered", "errs on three of ten", [stage("unfiltered")]),
        arm("filtered", "of these, those with the right answer", [stage("filtered")]),
        arm("clean", "never errs", [stage("clean")]),
    ]
    question = (
        "What does it cost to learn from a teacher who errs on three of ten, and does a filter repair it?"
    )
    return arm_set(arg, "filtering", question, teachers, arms)
