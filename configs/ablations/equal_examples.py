"""Do explanations beat answers at equal examples? One pass over the same queries, with any number of tokens.

Paper: the claim of sections 1 and 2; the main set compares at equal training tokens, where answers alone see
about three times as many questions. Here both see each question once, and explanations have more tokens;
`answers_longer` continues with answers, for four fifths of the main set's steps.

    python -m experiments.ablate --config=configs/ablations/equal_examples.py --workdir=runs/examples --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations import miniature
from orca_jax.configs.arguments import parse

EXPLANATIONS = dict(name="explanations", message=7)


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    small = parse(arg, variant=("default",)).runlocal
    once = {name: miniature.once(name, runlocal=small) for name in ("answers", "explanations")}
    longer = [miniature.stage("answers", 0.8, runlocal=small)]
    return miniature.arm_set(
        "equal-examples",
        "Do explanations beat answers when both see the same questions equally often?",
        [miniature.ANSWERS, EXPLANATIONS],
        [
            miniature.arm("explanations", "steps, one pass", [once["explanations"]]),
            miniature.arm("answers", "answers alone, one pass", [once["answers"]], message=1),
            miniature.arm("answers_longer", "answers alone, more passes", longer, message=1),
        ],
        runlocal=small,
        per_family=2500,
        also_empty=False,
    )
