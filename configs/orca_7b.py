"""Orca's two stages on Llama-2-7B: orca_13b.py with another student.

Paper: none at this size; Dolphin-Llama2-7B and Stable Beluga 7B are reproductions, whose learning rates and
schedule these are (see orca_13b.py, whose launch command holds with `llama2-7b`'s folder).

Mesh, remat and accumulation are the fastest that this plan finds: 12 GiB of 16 a chip, 1.7 s a step and an
MFU of 50 % by libtpu's cycles. For 8 GPUs of 80 GB (docs/scale.md):
`--config.mesh.data=1 --config.mesh.tensor=1 --config.train.accumulation=8 --config.student.remat=none`.

    python -m experiments.plan --config=configs/orca_7b.py --topology=v5e-64

Result: not trained by us at this size.
"""

from ml_collections import ConfigDict

from orca_jax.configs import orca_13b


def get_config(arg: str = "") -> ConfigDict:
    """`init=FOLDER`, `variant=two_stages|gpt4_only`, `runlocal`: as orca_13b.py."""
    return orca_13b.orca(arg, "7b", preset="llama2-7b", mesh=dict(data=2, tensor=2), accumulation=2)
