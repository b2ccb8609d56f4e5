"""Loss on the answers alone, as the paper has it, or on prompts too?

Paper: section 3.2 puts the loss on the teacher's tokens alone, without a comparison.

    python -m experiments.ablate --config=configs/ablations/supervision.py --workdir=runs/supervision \\
        --reuse=runs/main --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import TEACHERS, arm, arm_set, two_stages


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    everything = dict(supervise="everything")
    arms = [
        arm("answers", "loss on the teacher's tokens", two_stages("apprentice", "expert")),
        arm("everything", "loss on all tokens", two_stages("apprentice", "expert"), data=everything),
    ]
    question = "Does it help to learn from the answers' tokens alone?"
    return arm_set(arg, "supervision", question, TEACHERS, arms)
