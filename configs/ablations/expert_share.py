"""How much of the expert is needed? Its share of the queries, from a twentieth to all, in the second stage.

Paper: GPT-4 answered a fifth of ChatGPT's queries, because of price and limits (section 3.1.3).

    python -m experiments.ablate --config=configs/ablations/expert_share.py --workdir=runs/share --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import APPRENTICE, arm, arm_set, two_stages

SHARES = {"fifth": 0.2, "twentieth": 0.05, "half": 0.5, "all": 1.0}


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    teachers = [APPRENTICE, *(dict(name=name, share=share) for name, share in SHARES.items())]
    arms = [
        arm(name, f"{share:g} of the queries", two_stages("apprentice", name))
        for name, share in SHARES.items()
    ]
    question = "How much does the share of queries that the expert answers matter, at equal training tokens?"
    return arm_set(arg, "expert-share", question, teachers, arms)
