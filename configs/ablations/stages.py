"""More stages, as Orca 2 has: answers first, then the apprentice, then the expert.

Orca 2 (arXiv 2311.11045) trains on FLAN's answers, then on ChatGPT's, then on GPT-4's. Equal
training tokens in all arms.

    python -m experiments.ablate --config=configs/ablations/stages.py --workdir=runs/stages \\
        --reuse=runs/main --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import TEACHERS, arm, arm_set, stage, two_stages


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    three = [
        stage("answers", 0.2, final_fraction=0.5),
        stage("apprentice", 0.6, final_fraction=0.5),
        stage("expert", 0.2),
    ]
    arms = [
        arm("two", "apprentice, expert", two_stages("apprentice", "expert")),
        arm("three", "answers, apprentice, expert", three),
    ]
    return arm_set(arg, "stages", "Does a first stage on answers alone help?", TEACHERS, arms)
