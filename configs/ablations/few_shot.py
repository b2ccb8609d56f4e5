"""Few-shot prompts: does a student learn from questions that come after solved examples?

Orca 2 (arXiv 2311.11045) adds few-shot prompts; the paper has zero-shot prompts alone. All arms train
on equally many packed positions, most of which hold examples, and are evaluated without examples.

    python -m experiments.ablate --config=configs/ablations/few_shot.py --workdir=runs/few_shot --jobs=2
"""

from ml_collections import ConfigDict

from orca_jax.configs.ablations.miniature import arm, arm_set, stage


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds)."""
    arms = [
        arm("zero", "the question alone", [stage("zero")]),
        arm("both", "half of the rows with", [stage("both", datasets={"zero": 0.5, "shots": 0.5})]),
        arm("shots", "after two examples", [stage("shots")]),
    ]
    question = "What does a student learn from prompts with solved examples?"
    teachers = [dict(name="zero"), dict(name="shots", shots=2)]
    # Rows long enough for every prompt; positions a step are those of the other sets.
    return arm_set(arg, "few-shot", question, teachers, arms, row_length=1024, batch_rows=2)
