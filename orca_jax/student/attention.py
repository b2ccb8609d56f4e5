"""Attention backends by name. All of them mask attention between the segments of a packed row.

Axis letters as in `llama`: query [b, t, n, h], key and value [b, s, k, h], n a multiple of k. A backend is
called as (query, key, value, segment_ids, window): int32 segment ids [b, t] with 0 for padding, and the
size of the sliding window in tokens, the query's own included (0: no window).

`reference`, `causal_blocks` and `blockwise` are in `attention_xla`, the other two in `attention_kernels`.

| name | for | memory in the length | sliding window |
|---|---|---|---|
| reference | testing the others | quadratic | yes |
| causal_blocks | CPUs | quadratic | yes |
| blockwise | any platform | linear | yes |
| splash | TPUs | linear | yes |
| cudnn | GPUs | the mask is quadratic, the rest linear | yes |
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from orca_jax.student.attention_kernels import MAX_HEAD_DIM, cudnn, platform, say, splash
from orca_jax.student.attention_xla import blockwise, causal_blocks, reference

Backend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, int], jax.Array]
BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "causal_blocks": causal_blocks,
    "blockwise": blockwise,
    "splash": splash,
    "cudnn": cudnn,
}


def _automatic(on: str, head_dim: int) -> tuple[str, str]:
    """The backend for a platform, and the reason."""
    if on == "cpu":
        return "causal_blocks", "the fastest on CPUs"
    if on == "tpu" and head_dim <= MAX_HEAD_DIM:
        return "splash", "the kernel for TPUs"
    if on == "tpu":
        return "blockwise", f"heads of {head_dim} are larger than splash takes ({MAX_HEAD_DIM})"
    capability = getattr(jax.devices()[0], "compute_capability", "")  # none where there is no GPU
    if capability and float(capability) < 8:
        return "blockwise", f"cuDNN's kernel needs compute capability 8.0 and this is {capability}"
    return "cudnn", "the kernel for GPUs, where it takes the type and the heads"


def choose(backend: str, head_dim: int = 0) -> str:
    """Resolves `auto` to the backend for the current platform, and logs the choice once with its reason.

    Raises:
      ValueError: the name is unknown.
    """
    if backend == "auto":
        name, why = _automatic(platform(), head_dim)
        say(f"attention: {name}, by auto on {platform()}: {why}")
        return name
    if backend not in BACKENDS:
        raise ValueError(f"student.attention={backend!r}; known: auto, {', '.join(BACKENDS)}")
    say(f"attention: {backend}, as student.attention asks")
    return backend


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    backend: str = "auto",
    window: int = 0,
) -> jax.Array:
    """Causal attention within segments, [b, t, n, h] in the query's dtype; zero at padding.

    Args:
      query: [b, t, n, h]; n is a multiple of k, and g = n / k neighbouring heads share a key-value head.
      key: [b, t, k, h].
      value: [b, t, k, h].
      segment_ids: int32 [b, t]; 0 is padding; the tokens of a segment are contiguous.
      backend: a name of `BACKENDS`, or `auto`.
      window: size of the sliding window in tokens, the query's own included; 0 is no window.

    Raises:
      ValueError: the name is unknown, the window negative, or the backend does not support windows.
    """
    if window < 0:
        raise ValueError(f"the sliding window must be 0 (none) or a number of tokens, got {window}")
    return BACKENDS[choose(backend, query.shape[-1])](query, key, value, segment_ids, window)
