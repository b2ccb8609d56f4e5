"""Orca 13B: LLaMA-13B on ChatGPT's explanations of FLAN-5M, then on GPT-4's of FLAN-1M.

Paper: sections 3.1.3 and 3.2, the student of Tables 7 to 11; 4 epochs a stage, rows of 2,048 positions,
vocabulary 32,001, 160 + 40 hours on 20 A100-80GB. The paper states no learning rate, schedule, batch,
optimizer or dtype. The values are from the model cards and public configs of reproductions: 2e-5 and then
1e-5 (Dolphin-Llama2-7B), a cosine to a tenth, 100 steps of warm-up, betas 0.9 and 0.95 (Stable Beluga),
bfloat16; the batch is within their 64 to 256 rows. `variant=gpt4_only` leaves the first stage out.

Launch, from LLaMA-13B's folder and two trace files:

    python -m experiments.run --config=configs/orca_13b.py:init=llama-13b --workdir=runs/orca_13b \\
        --config.teachers[0].path=chatgpt.jsonl --config.teachers[1].path=gpt4.jsonl

`init` takes shape and tokenizer from the folder. Without it the shape is the preset's, for `plan`; a student
trained that way would start from random weights.

Mesh, remat and accumulation are the fastest that this plan finds: 64 GiB of 95 a chip, 2.5 s a step and an
MFU of 57 % by libtpu's cycles. For other chips take what `faster:` says there.

    python -m experiments.plan --config=configs/orca_13b.py --topology=v5p:2x4x4

Result: not trained by us at this size.
"""

from collections.abc import Mapping
from types import MappingProxyType

from ml_collections import ConfigDict

from orca_jax.config import complete
from orca_jax.configs.arguments import parse, shrink

STAGES = (("chatgpt", 2e-5), ("gpt4", 1e-5))


def get_config(arg: str = "") -> ConfigDict:
    """`init=FOLDER` (weights), `variant=two_stages|gpt4_only`, `runlocal` (seconds, a tiny student)."""
    return orca(arg, "13b", preset="llama-13b")


def orca(
    arg: str,
    size: str,
    *,
    preset: str,
    vocab_size: int = 32_001,
    tokenizer: str = "tokenizer.model",
    row_length: int = 2048,
    batch_rows: int = 128,
    accumulation: int = 1,
    remat: str = "products",
    mesh: Mapping[str, int] = MappingProxyType({"data": -1, "fsdp": 8}),
) -> ConfigDict:
    """The experiment with a student of one of the presets, on the mesh that a plan finds for its slice."""
    args = parse(arg, variant=("two_stages", "gpt4_only"), paths=("init",))
    stages = STAGES[1:] if args.variant == "gpt4_only" else STAGES
    config = ConfigDict(dict(name=f"orca-{size}-{args.variant}", puzzles={}, mesh=dict(mesh)))
    config.teachers = [dict(name=name, kind="file", path=f"{name}.jsonl") for name, _ in stages]
    config.data = dict(tokenizer=tokenizer, row_length=row_length, max_segments=row_length // 64)
    config.data.validation_fraction = 0.001
    config.student = dict(preset=preset, vocab_size=vocab_size, remat=remat)
    config.curriculum = [
        dict(name=name, datasets={name: 1.0}, epochs=4, learning_rate=rate, warmup_steps=100)
        for name, rate in stages
    ]
    config.optimizer = dict(betas=(0.9, 0.95), weight_decay=0.0, clip_norm=1.0)
    config.train = dict(batch_rows=batch_rows, compute_dtype="bfloat16", checkpoint_every=500, log_every=10)
    config.train.update(validate_every=1000, accumulation=accumulation)
    config.evaluation = dict(per_family=1, messages=(), max_tokens=512, max_length=2048, temperature=0.7)
    if args.init:
        config.data.tokenizer = ""
        config.student = dict(init=args.init, vocab_size=0, remat=remat)
    if args.runlocal:
        if not args.init:
            config.student = {}
        shrink(config)
        config.data.update(max_segments=32, validation_fraction=0.05)
        config.train.update(batch_rows=8, accumulation=1, checkpoint_every=2, validate_every=0)
        config.mesh = {}
        config.evaluation.max_length = 512
    return complete(config)
