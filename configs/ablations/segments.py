"""Does attention have to be masked between the examples of a row?

Paper: section 3.2 packs 2.7 examples a row and does not say whether they attend to one another. `leaking` is
packing by concatenation: running positions, and attention to all earlier examples in the row.

    python -m experiments.ablate --config=configs/ablations/segments.py --workdir=runs/segments \\
        --reuse=runs/main --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import TEACHERS, arm, arm_set, two_stages


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    leaking = dict(segments="leaking")
    arms = [
        arm("separated", "own positions, own attention", two_stages("apprentice", "expert")),
        arm("leaking", "one long sequence", two_stages("apprentice", "expert"), data=leaking),
    ]
    question = "Does it matter that the examples of a packed row cannot see one another?"
    return arm_set(arg, "segments", question, TEACHERS, arms)
