"""Does the order of the teachers matter? The same two data sets, in the same shares, in five orders.

Paper: section 3.1.3 trains on the weaker teacher first and tries no other order. `annealed` moves linearly
from the apprentice to the expert, so each has half of the run, as in `even`.

    python -m experiments.ablate --config=configs/ablations/order.py --workdir=runs/order \\
        --reuse=runs/main --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import TEACHERS, arm, arm_set, stage, two_stages


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    mixed, even = {"apprentice": 0.8, "expert": 0.2}, {"apprentice": 0.5, "expert": 0.5}
    annealed = stage("annealed", datasets={"apprentice": 1.0}, anneal_to={"expert": 1.0})
    arms = [
        arm("progressive", "apprentice, then expert", two_stages("apprentice", "expert")),
        arm("reversed", "expert, then apprentice", two_stages("expert", "apprentice", 0.2)),
        arm("mixed", "4 : 1 in no order", [stage("mixed", datasets=mixed)]),
        arm("annealed", "apprentice to expert in a line", [annealed]),
        arm("even", "1 : 1 in no order", [stage("even", datasets=even)]),
    ]
    question = "Does the order in which a student meets its teachers matter?"
    return arm_set(arg, "order", question, TEACHERS, arms)
