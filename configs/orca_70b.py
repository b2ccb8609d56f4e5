"""Orca's two stages on Llama-2-70B, in rows of 4,096 positions: orca_13b.py with another student.

Paper: none at this size; Stable Beluga 70B is a reproduction: AdamW with betas 0.9 and 0.95, 3e-5 to 3e-6 by
a cosine, 100 steps of warm-up. The rates here are the lower ones of orca_13b.py, whose launch command holds
with `llama2-70b`'s folder. A step of 64 rows has as many positions as one of the smaller students.

Mesh, remat and accumulation are the fastest that this plan finds: 67 GiB of 95 a chip, 7.3 s a step and an
MFU of 52 % by libtpu's cycles (docs/scale.md).

    python -m experiments.plan --config=configs/orca_70b.py --topology=v5p-128

Result: not trained by us at this size.
"""

from ml_collections import ConfigDict

from orca_jax.configs import orca_13b


def get_config(arg: str = "") -> ConfigDict:
    """`init=FOLDER`, `variant=two_stages|gpt4_only`, `runlocal`: as orca_13b.py."""
    shape = dict(preset="llama2-70b", row_length=4096, batch_rows=64)
    return orca_13b.orca(arg, "70b", **shape, mesh=dict(tensor=4), accumulation=2)
