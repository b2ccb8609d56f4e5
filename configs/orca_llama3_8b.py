"""Orca's two stages on Llama-3-8B, in rows of 4,096 positions: orca_13b.py with another student.

Paper: none for this student. Rates and schedule are those of orca_13b.py, whose launch command holds with
Llama-3-8B's folder; its tokenizer names no padding token, so there are 128,257 ids.

The plan: 31 GiB of 95 a chip, 6.8 s a step and an MFU of 51 % by libtpu's cycles. What it names as faster
(mesh 2 x 4, remat `none` in 8 parts) takes 85 GiB and gains 2 % by cycles: the setting that fits more chips
stays.

    python -m experiments.plan --config=configs/orca_llama3_8b.py --topology=v5p-16

Result: not trained by us at this size.
"""

from ml_collections import ConfigDict

from orca_jax.configs import orca_13b


def get_config(arg: str = "") -> ConfigDict:
    """`init=FOLDER`, `variant=two_stages|gpt4_only`, `runlocal`: as orca_13b.py."""
    shape = dict(preset="llama3-8b", vocab_size=128_257, tokenizer="llama3-8b")
    where = dict(mesh={}, remat="full")
    return orca_13b.orca(arg, "llama3-8b", **shape, row_length=4096, batch_rows=64, **where)
