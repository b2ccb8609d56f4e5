"""Does majority voting over samples correct a teacher's errors without known answers?

If most of a query's three samples agree, the first of those is trained on; other queries are dropped. This is
self-consistency (arXiv 2203.11171) as a filter; the paper takes one sample of each teacher and keeps all.
`filtering` checks against the known answer instead. The errors of an oracle's samples are independent, so
agreement works better here than with a model, whose samples share mistakes.

    python -m experiments.ablate --config=configs/ablations/agreement.py --workdir=runs/agreement --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import arm, arm_set, stage


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    teachers = [
        dict(name="single", error_rate=0.3),
        dict(name="agreed", error_rate=0.3, samples=3, filters=("outvoted", "spare")),
        dict(name="clean"),
    ]
    arms = [
        arm("single", "errs on three of ten", [stage("single")]),
        arm("agreed", "asked three times, what most samples say", [stage("agreed")]),
        arm("clean", "never errs", [stage("clean")]),
    ]
    question = "Does agreement among a teacher's samples repair its errors, without a known answer?"
    return arm_set(arg, "agreement", question, teachers, arms)
