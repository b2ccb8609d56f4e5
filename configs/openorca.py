"""Explanation tuning on trace files: OpenOrca rows, `messages` or ShareGPT, JSON lines or Parquet.

Paper: the two stages of section 3.2, in miniature. Launch, from a released student with its own tokenizer and
chat template (LoRA; a folder, a .gguf or a name of the hub), or from scratch with a SentencePiece model:

    python -m experiments.run --workdir=runs/tuned \\
        --config=configs/openorca.py:data=rows.jsonl,init=Qwen/Qwen3-0.6B
    python -m experiments.run --config=configs/openorca.py:data=rows.jsonl --workdir=runs/openorca \\
        --config.data.tokenizer=tokenizer.model

From scratch the vocabulary is the model's 32,000 pieces and one pad token. To train a tokenizer on the
traces, give `data.tokenizer=''` and another `student.vocab_size`. A released student is evaluated on 50
puzzles of each of three families; BBH's files are read from `benchmarks.bbh`. `variant=two_teachers` trains
on a ChatGPT-type file (`data`) first and on a GPT-4-type file (`teachers[1].path`) second.

Expected on 2 cores with 600 rows: about 15 seconds a step of 8,192 positions beside other work, 124 steps
in 4 epochs, from scratch; the held-out loss of 30 rows falls from 7.2 (step 20) to 6.5 (step 62, two epochs):
docs/training.md.
"""

from ml_collections import ConfigDict

from orca_jax.config import complete
from orca_jax.configs.arguments import parse, shrink


def get_config(arg: str = "") -> ConfigDict:
    """`data=FILE`, `init=MODEL`, `variant=one_teacher|two_teachers`, `runlocal` (seconds, not minutes)."""
    args = parse(arg, variant=("one_teacher", "two_teachers"), paths=("data", "init"))
    names = ("chatgpt", "gpt4") if args.variant == "two_teachers" else ("gpt4",)
    config = ConfigDict(dict(name=f"openorca-{args.variant}", puzzles={}, optimizer={}, mesh={}))
    config.teachers = [dict(name=name, kind="file", path=f"{name}.jsonl") for name in names]
    if args.data:
        config.teachers[0]["path"] = args.data
    config.data = dict(
        tokenizer="tokenizer.model", row_length=2048, max_segments=32, validation_fraction=0.05
    )
    config.student = dict(vocab_size=32_001, hidden_size=256, intermediate_size=688, num_layers=4)
    config.student.update(num_heads=8, num_kv_heads=4, head_dim=32)
    config.curriculum = [
        dict(name=name, datasets={name: 1.0}, epochs=4, learning_rate=1e-3, warmup_steps=10) for name in names
    ]
    config.train = dict(batch_rows=4, checkpoint_every=20, validate_every=20, log_every=5)
    config.evaluation = dict(per_family=1, messages=(), max_tokens=64, max_length=1536, batch_size=16)
    if args.init:
        start_from(config, args.init)
    if args.runlocal:
        shrink(config)
    return complete(config)


def start_from(config: ConfigDict, init: str) -> None:
    """A released student with adapters, its own tokenizer and layout, evaluated on puzzles."""
    config.student = dict(init=init, vocab_size=0, lora=dict(rank=16, alpha=32.0))
    config.data.update(tokenizer="", row_length=1024, overlong="drop")
    config.train.update(batch_rows=8, accumulation=8)  # a row at a time: a laptop's memory
    for stage in config.curriculum:
        stage.update(epochs=2, learning_rate=5e-4)
    config.puzzles = dict(
        families=("web_of_lies", "object_counting", "navigate"), per_family=0
    )  # none to train on
    config.evaluation.update(per_family=50, messages=(7,), max_tokens=256, max_length=1024)
