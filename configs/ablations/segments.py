"""Does attention have to be masked between the examples of a row?

Paper: section 3.2 packs 2.7 examples a row and does not say whether they attend to one another. `leaking` is
packing by concatenation: running positions, and attention to all earlier examples in the row.

    python -m experiments.ablate --config=configs/ablations/segments.py --workdir=runs/segments \\
        --reuse=runs/main --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations import miniature
from orca_jax.configs.arguments import parse


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    small = parse(arg, variant=("default",)).runlocal
    curriculum = miniature.two_stages("apprentice", "expert", runlocal=small)
    return miniature.arm_set(
        "segments",
        "Does it matter that the examples of a packed row cannot see one another?",
        miniature.TEACHERS,
        [
            miniature.arm("separated", "own positions, own attention", curriculum),
            miniature.arm("leaking", "one long sequence", curriculum, data=dict(segments="leaking")),
        ],
        runlocal=small,
    )
