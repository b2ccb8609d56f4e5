"""Few-shot prompts: does a student learn from questions that come after solved examples?

Orca 2 (arXiv 2311.11045) adds few-shot prompts; the paper has zero-shot prompts alone. All arms train
on equally many packed positions, most of which hold examples, and are evaluated without examples.

    python -m experiments.ablate --config=configs/ablations/few_shot.py --workdir=runs/few_shot --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations import miniature
from orca_jax.configs.arguments import parse


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    small = parse(arg, variant=("default",)).runlocal
    both = {"zero": 0.5, "shots": 0.5}
    config = miniature.arm_set(
        "few-shot",
        "What does a student learn from prompts with solved examples?",
        [dict(name="zero"), dict(name="shots", shots=2)],
        [
            miniature.arm("zero", "the question alone", [miniature.stage("zero", runlocal=small)]),
            miniature.arm(
                "both", "half of the rows with", [miniature.stage("both", runlocal=small, datasets=both)]
            ),
            miniature.arm("shots", "after two examples", [miniature.stage("shots", runlocal=small)]),
        ],
        runlocal=small,
    )
    if not small:  # rows long enough for every prompt; positions a step are those of the other sets
        config.base.data.row_length, config.base.train.batch_rows = 1024, 2
    return config
