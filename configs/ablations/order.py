"""Does the order of the teachers matter? The same two data sets, in the same shares, in five orders.

Paper: section 3.1.3 trains on the weaker teacher first and tries no other order. `annealed` moves linearly
from the apprentice to the expert, so each has half of the run, as in `even`.

    python -m experiments.ablate --config=configs/ablations/order.py --workdir=runs/order \\
        --reuse=runs/main --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations import miniature
from orca_jax.configs.arguments import parse


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    small = parse(arg, variant=("default",)).runlocal
    progressive = miniature.two_stages("apprentice", "expert", runlocal=small)
    backwards = miniature.two_stages("expert", "apprentice", 0.2, runlocal=small)
    shares = {"apprentice": 0.8, "expert": 0.2}
    halves = {"apprentice": 0.5, "expert": 0.5}
    annealed = dict(datasets={"apprentice": 1.0}, anneal_to={"expert": 1.0})
    return miniature.arm_set(
        "order",
        "Does the order in which a student meets its teachers matter?",
        miniature.TEACHERS,
        [
            miniature.arm("progressive", "apprentice, then expert", progressive),
            miniature.arm("reversed", "expert, then apprentice", backwards),
            miniature.arm(
                "mixed", "4 : 1 in no order", [miniature.stage("mixed", runlocal=small, datasets=shares)]
            ),
            miniature.arm(
                "annealed",
                "apprentice to expert in a line",
                [miniature.stage("annealed", runlocal=small, **annealed)],
            ),
            miniature.arm(
                "even", "1 : 1 in no order", [miniature.stage("even", runlocal=small, datasets=halves)]
            ),
        ],
        runlocal=small,
    )
