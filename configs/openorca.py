"""Explanation tuning on trace files: OpenOrca rows, `messages` or ShareGPT, JSON lines or Parquet.

Paper: the two stages of section 3.2, in miniature. Launch, with a file and a SentencePiece model:

    python -m experiments.run --config=configs/openorca.py --workdir=runs/openorca \\
        --config.teachers[0].path=gpt4_rows.jsonl --config.data.tokenizer=tokenizer.model

The vocabulary is the model's 32,000 pieces and one pad token. To start from released weights, give their
folder as `student.init`, with `student.vocab_size=0` and `data.tokenizer=''`. To train a tokenizer on the
traces, give `data.tokenizer=''` and another `student.vocab_size`. Evaluation reads BBH's files from
`benchmarks.bbh`. `variant=two_teachers` trains on a ChatGPT-type file first and on a GPT-4-type file second.

Expected on 2 cores with 600 rows: about 15 seconds a step of 8,192 positions beside other work, 124 steps
in 4 epochs; the held-out loss of 30 rows falls from 7.2 (step 20) to 6.5 (step 62, two epochs):
docs/training.md.
"""

from ml_collections import ConfigDict

from orca_jax.config import complete
from orca_jax.configs.arguments import parse, shrink


def get_config(arg: str = "") -> ConfigDict:
    """`variant=one_teacher|two_teachers`, `runlocal` (seconds instead of minutes)."""
    args = parse(arg, variant=("one_teacher", "two_teachers"))
    names = ("chatgpt", "gpt4") if args.variant == "two_teachers" else ("gpt4",)
    config = ConfigDict(dict(name=f"openorca-{args.variant}", puzzles={}, optimizer={}, mesh={}))
    config.teachers = [dict(name=name, kind="file", path=f"{name}.jsonl") for name in names]
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
    if args.runlocal:
        shrink(config)
    return complete(config)
