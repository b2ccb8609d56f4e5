"""How much data? The same number of tokens from ever more questions of one teacher.

Paper: the size of a teacher's set is never varied alone.

    python -m experiments.ablate --config=configs/ablations/data_size.py --workdir=runs/data-size --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import arm, arm_set, stage

SHARES = {"all": 1.0, "half": 0.5, "fifth": 0.2, "twentieth": 0.05}


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    teachers = [dict(name=name, share=share) for name, share in SHARES.items()]
    arms = [arm(name, f"{share:g} of the queries", [stage(name)]) for name, share in SHARES.items()]
    question = "What do more questions give, at equal training tokens?"
    return arm_set(arg, "data-size", question, teachers, arms)
