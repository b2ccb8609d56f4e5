"""A LLaMA decoder in linen (Touvron et al., arXiv 2302.13971): RMS norm, rotary positions, SwiGLU.

The switches of `LlamaConfig` make it one of Mistral's, Qwen's, SmolLM3, Gemma 3 or OLMo 2.

Axis letters: b batch, t query position, s key position, n query heads, k key-value heads, h head
dimension, d hidden size, f feed-forward size, v (padded) vocabulary, l layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from orca_jax.student import attention, lora
from orca_jax.student.attention_kernels import is_cudnn_forward
from orca_jax.student.attention_xla import RESIDUALS
from orca_jax.student.presets import LayerType, LlamaConfig, RopeScaling
from orca_jax.student.sharding import all_but_gathered, constrain, gathers, lookup, product

Params = dict[str, Any]
# Kernels preserve the variance of their input, and embeddings start at the scale of what blocks add to them.
# At LLaMA's width this is near the customary 0.02, with which a narrow student hardly learns to copy.
KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal")


class LayerCache(Protocol):
    """The interface of one layer's KV cache; `decoding` has the implementations."""

    def attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        config: LlamaConfig,
        window: int,
    ) -> tuple[jax.Array, Any]:
        """Attention [b, t, n, h] of new tokens to the cached ones and to themselves, and the new cache.

        Args:
          window: size of the layer's sliding window in tokens; 0: none.
        """


Cache = tuple[LayerCache, ...]


class Rope(NamedTuple):
    """Cosines and sines of the rotary angles, each float32 [b, t, 1, h / 2]."""

    cos: jax.Array
    sin: jax.Array


Ropes = dict[LayerType, Rope | None]  # by type of layer


def frequencies(config: LlamaConfig, kind: LayerType = "full") -> np.ndarray:
    """Rotary frequencies of a type of layer, float32 [h / 2], in radians per position, stretched."""
    own = kind == "window" and config.window_rope_theta
    theta, scaling = (own, RopeScaling()) if own else (config.rope_theta, config.rope_scaling)
    plain = theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    if scaling.kind not in ("none", "linear", "llama3"):
        raise ValueError(f"rope_scaling.kind={scaling.kind!r}; known: none, linear, llama3")
    stretched = plain / scaling.factor
    if scaling.kind == "llama3":
        turns = plain * scaling.original_length / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        stretched = kept * plain + (1 - kept) * stretched
    return (plain if scaling.kind == "none" else stretched).astype(np.float32)


def rotations(positions: jax.Array, config: LlamaConfig) -> Ropes:
    """Rotary angles (Su et al., arXiv 2104.09864) of int32 positions [b, t] by type of layer."""

    def rope(kind: LayerType) -> Rope | None:
        angles = positions[:, :, None, None].astype(jnp.float32) * frequencies(config, kind)
        return None if kind == "no_rope" else Rope(jnp.cos(angles), jnp.sin(angles))

    return {kind: rope(kind) for kind in sorted(set(config.types))}


def rotate(x: jax.Array, rope: Rope | None) -> jax.Array:
    """Rotates the pairs (i, i + h/2) of [b, t, n, h], the half-split layout of released weights."""
    if rope is None:
        return x
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * rope.cos - second * rope.sin, second * rope.cos + first * rope.sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 (Zhang and Sennrich, arXiv 1910.07467)."""

    epsilon: float
    around_one: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.zeros if self.around_one else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],), jnp.float32)
        scale = 1 + scale if self.around_one else scale
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        return (wide * inverse * scale).astype(x.dtype)


class Types(NamedTuple):
    """`compute`: of activations and products; `reduce`: in which kernels' gradients are summed."""

    compute: jnp.dtype
    reduce: jnp.dtype


def dense(features: int, types: Types, name: str, bias: bool = False) -> nn.Dense:
    def multiply(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
        return product(x, kernel, f"{name}/kernel", types.reduce)

    def promote(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, dtype: jnp.dtype) -> Any:
        return x.astype(dtype), kernel, None if bias is None else bias.astype(dtype)

    return nn.Dense(
        features,
        use_bias=bias,
        dtype=types.compute,
        kernel_init=KERNEL_INIT,
        promote_dtype=cast(Any, promote),  # `product` casts the kernel
        dot_general=multiply,
        name=name,
    )


def norm(config: LlamaConfig, name: str) -> RMSNorm:
    return RMSNorm(config.norm_epsilon, config.norm_around_one, name=name)


class Attention(nn.Module):
    """Attention of a layer that is of one of `kinds`."""

    config: LlamaConfig
    types: Types
    kinds: tuple[LayerType, ...]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segment_ids: jax.Array,
        ropes: Ropes,
        positions: jax.Array,
        which: jax.Array | None,
        cache: LayerCache | None,
    ) -> tuple[jax.Array, LayerCache | None]:
        c = self.config
        query = self._heads(x, c.num_heads, "query", c.query_key_norm)
        if c.query_scalar not in (0, c.head_dim):
            query *= math.sqrt(c.head_dim / c.query_scalar)
        key = self._heads(x, c.num_kv_heads, "key", c.query_key_norm)
        value = self._heads(x, c.num_kv_heads, "value")

        def attend(kind: LayerType, cache: LayerCache | None) -> tuple[jax.Array, LayerCache | None]:
            turned = rotate(query, ropes[kind]), rotate(key, ropes[kind])
            window = c.sliding_window if kind == "window" else 0
            if cache is not None:
                return cache.attend(*turned, value, positions, segment_ids, c, window)
            return attention.attend(*turned, value, segment_ids, backend=c.attention, window=window), None

        if which is None:
            attn_out, cache = attend(self.kinds[0], cache)
        else:
            attn_out = jax.lax.switch(which, [lambda kind=kind: attend(kind, None)[0] for kind in self.kinds])
        attn_out = attn_out.reshape(*x.shape[:2], c.num_heads * c.head_dim)
        return dense(c.hidden_size, self.types, "output", c.output_bias)(attn_out), cache

    def _heads(self, x: jax.Array, count: int, name: str, normed: str = "none") -> jax.Array:
        """Projected to heads [b, t, count, h]; `normed` as `query_key_norm`."""
        heads = dense(count * self.config.head_dim, self.types, name, self.config.qkv_bias)(x)
        if normed == "all":
            heads = norm(self.config, f"{name}_norm")(heads)
        heads = heads.reshape(*x.shape[:2], count, self.config.head_dim)
        if normed == "head":
            heads = norm(self.config, f"{name}_norm")(heads)
        return constrain(heads, "batch", None, "tensor", None)


class FeedForward(nn.Module):
    """SwiGLU, or GeGLU (Shazeer, arXiv 2002.05202)."""

    config: LlamaConfig
    types: Types

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = self.config.intermediate_size
        activation = nn.silu if self.config.activation == "silu" else nn.gelu
        gate = activation(dense(size, self.types, "gate")(x))
        hidden = constrain(gate * dense(size, self.types, "up")(x), "batch", None, "tensor")
        return dense(self.config.hidden_size, self.types, "down")(hidden)


class Block(nn.Module):
    """A layer; where it may be of several `kinds`, `which` is the index of its own."""

    config: LlamaConfig
    types: Types
    kinds: tuple[LayerType, ...]

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segment_ids: jax.Array,
        ropes: Ropes,
        positions: jax.Array,
        which: jax.Array | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        c = self.config
        before, after = c.norms != "after", c.norms != "before"
        normed = norm(c, "attention_norm")(x) if before else x
        attn_out, cache = Attention(c, self.types, self.kinds, name="attention")(
            normed, segment_ids, ropes, positions, which, cache
        )
        x = x + (norm(c, "attention_out_norm")(attn_out) if after else attn_out)
        normed = norm(c, "feed_forward_norm")(x) if before else x
        fed = FeedForward(c, self.types, name="feed_forward")(normed)
        x = x + (norm(c, "feed_forward_out_norm")(fed) if after else fed)
        return constrain(x, "batch", None, None), cache


def _products_and_attention(*call: Any, **params: Any) -> bool:
    """Products with weights have no batch dimensions; those inside attention do, and are not saved."""
    policies = jax.checkpoint_policies
    named = policies.save_only_these_names(RESIDUALS)
    saved = (policies.dots_with_no_batch_dims_saveable, named, is_cudnn_forward)
    return any(policy(*call, **params) for policy in saved)


def rematerialized(config: LlamaConfig) -> type[Block]:
    """The block with the rematerialisation policy of `config.remat`."""
    if config.remat == "none" and not gathers():
        return Block
    policies = {
        "none": all_but_gathered,
        "products": _products_and_attention,
        "full": None,
    }
    return nn.remat(Block, policy=policies[config.remat], prevent_cse=not config.scan_layers)


def _decoded(layer: Block, arguments: tuple[Any, ...]) -> Any:
    """What a bound layer gives; like layers are traced once."""
    alone, variables = layer.unbind()
    return _apply(alone.clone(name=None), variables, arguments)


@functools.partial(jax.jit, static_argnums=0)
def _apply(layer: Block, variables: Any, arguments: tuple[Any, ...]) -> Any:
    return layer.apply(variables, *arguments)


class Llama(nn.Module):
    """The decoder. `dtype` is the compute type; parameters are float32. `reduce_dtype`: see `Types`."""

    config: LlamaConfig
    dtype: jnp.dtype = jnp.float32
    reduce_dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        c = self.config
        # A tied embedding is also the unembedding, and is initialised like a kernel.
        embedding_init = nn.initializers.normal(c.hidden_size**-0.5 if c.tie_embeddings else 1.0)
        self.embed = nn.Embed(
            c.padded_vocab_size, c.hidden_size, dtype=self.dtype, embedding_init=embedding_init
        )
        block, types = rematerialized(c), Types(self.dtype, self.reduce_dtype)
        if c.scan_layers:
            stack = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
                length=c.num_layers,
            )
            self.layers: Any = stack(c, types, tuple(sorted(set(c.types))))
        else:
            self.layers = [block(c, types, (kind,), name=f"layer_{i}") for i, kind in enumerate(c.types)]
        self.norm = RMSNorm(c.norm_epsilon, c.norm_around_one)
        if not c.tie_embeddings:
            self.unembed = self.param(
                "unembed", KERNEL_INIT, (c.hidden_size, c.padded_vocab_size), jnp.float32
            )

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """The last layer's normed output [b, t, d] in the compute type, and the updated cache."""
        c = self.config
        ropes = rotations(positions, c)
        x = lookup(self.embed.embedding, tokens, "embed/embedding", self.dtype)
        if c.scale_embedding:
            x *= jnp.asarray(math.sqrt(c.hidden_size), self.dtype)
        if c.scan_layers:
            if cache is not None:
                raise ValueError("decoding uses the per-layer view: see student.parameters.per_layer")
            several = len(ropes) > 1
            which = jnp.array([[*ropes].index(kind) for kind in c.types]) if several else None
            x, _ = self.layers(x, segment_ids, ropes, positions, which)
        else:
            x, cache = self._unrolled(x, segment_ids, ropes, positions, cache)
        return self.norm(x), cache

    def _unrolled(
        self, x: jax.Array, segment_ids: jax.Array, ropes: Ropes, positions: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        before: Sequence[LayerCache | None] = cache or (None,) * self.config.num_layers
        after = []
        for layer, layer_cache in zip(self.layers, before, strict=True):
            arguments = x, segment_ids, ropes, positions, None, layer_cache
            x, layer_cache = layer(*arguments) if layer_cache is None else _decoded(layer, arguments)
            after.append(layer_cache)
        return x, tuple(after) if cache else None


def logits(last: jax.Array, matrix: jax.Array, vocab_size: int) -> jax.Array:
    """Float32 [..., v] of hidden [..., d] and head [d, v]; ids from `vocab_size` on get -inf."""
    scores = jnp.matmul(last, matrix.astype(last.dtype), preferred_element_type=jnp.float32)
    if vocab_size == matrix.shape[-1]:
        return scores
    return jnp.where(jnp.arange(matrix.shape[-1]) < vocab_size, scores, -jnp.inf)


def init(config: LlamaConfig, seed: int) -> Params:
    """Fresh float32 parameters: kernels normal of variance 1 / fan-in, embeddings normal, norms one.

    Beside adapters, kernels and embeddings are in `lora.base_dtype`.
    Scanned and unrolled students draw different numbers from one seed.
    """
    dummy = jnp.zeros((1, 8), jnp.int32)
    with lora.adapting(config.lora):
        params = Llama(config).init(jax.random.key(seed), dummy, dummy, dummy)["params"]
    return lora.in_base_dtype(params, config.lora)


def apply(
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    cache: Cache | None = None,
    *,
    config: LlamaConfig,
    dtype: jnp.dtype = jnp.float32,
) -> tuple[jax.Array, Cache | None]:
    """The student as a pure function: float32 logits [b, t, v], padding ids at -inf, and the updated cache.

    Args:
      tokens: int32 [b, t].
      positions: int32 [b, t], counted from 0 in each segment.
      segment_ids: int32 [b, t]; 0 is padding. Tokens attend within their segment only.
      cache: one entry a layer; only the per-layer view takes a cache.
    """
    last, cache = hidden(params, tokens, positions, segment_ids, cache, config=config, dtype=dtype)
    return logits(last, head(params, config), config.vocab_size), cache


def hidden(
    params: Params,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    cache: Cache | None = None,
    *,
    config: LlamaConfig,
    dtype: jnp.dtype = jnp.float32,
    reduce_dtype: jnp.dtype = jnp.float32,
) -> tuple[jax.Array, Cache | None]:
    """`apply` without the unembedding: the last layer's normed output [b, t, d] in the compute type.

    Args:
      reduce_dtype: the type in which gradients of the layers' kernels are summed, over devices too.
    """
    model: Any = Llama(config, dtype, reduce_dtype)
    with lora.adapting(config.lora):
        return model.apply({"params": params}, tokens, positions, segment_ids, cache)


def head(params: Params, config: LlamaConfig) -> jax.Array:
    """The unembedding matrix, float32 [d, v]."""
    return params["embed"]["embedding"].T if config.tie_embeddings else params["unembed"]
