"""LLaMA for one sequence in plain numpy, float64, written from the papers: what the student must compute.

No batch, no mask but causality, no cache; one loop over layers and one over heads.
"""

import numpy as np


def forward(params, tokens, config):
    """Logits [n, vocab_size] of `tokens` [n] under per-layer parameters."""
    wide = {name: np.asarray(value, np.float64) for name, value in flat(params)}
    x = wide["embed/embedding"][tokens] * (np.sqrt(config.hidden_size) if config.scale_embedding else 1)
    for layer in range(config.num_layers):
        p = {
            name.split("/", 1)[1]: value for name, value in wide.items() if name.startswith(f"layer_{layer}/")
        }
        kind = config.types[layer]
        attended = attention(normed(x, p, "attention_norm", config), p, config, kind)
        x = x + normed(attended, p, "attention_out_norm", config)
        fed = gated(normed(x, p, "feed_forward_norm", config), p, config)
        x = x + normed(fed, p, "feed_forward_out_norm", config)
    head = wide["embed/embedding"].T if config.tie_embeddings else wide["unembed"]
    return (normed(x, wide, "norm", config) @ head)[:, : config.vocab_size]


def flat(tree, prefix=""):
    """(path, leaf) pairs of nested dictionaries."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def normed(x, p, name, config):
    """The RMS norm of that name, where the model has it."""
    if f"{name}/scale" not in p:
        return x
    scale = p[f"{name}/scale"] + (1 if config.norm_around_one else 0)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_epsilon) * scale


def gated(x, p, config):
    gate = x @ p["feed_forward/gate/kernel"]
    if config.activation == "silu":
        gate = gate / (1 + np.exp(-gate))
    else:
        gate = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return (gate * (x @ p["feed_forward/up/kernel"])) @ p["feed_forward/down/kernel"]


def attention(x, p, config, kind):
    size, shared = config.head_dim, config.num_heads // config.num_kv_heads
    queries, keys, values = (affine(x, p, name) for name in ("query", "key", "value"))
    if config.query_key_norm == "all":
        queries, keys = (
            normed(y, p, f"attention/{n}_norm", config) for y, n in ((queries, "query"), (keys, "key"))
        )
    outputs = []
    for head in range(config.num_heads):
        q, k, v = (
            part(queries, head, size),
            part(keys, head // shared, size),
            part(values, head // shared, size),
        )
        if config.query_key_norm == "head":
            q, k = normed(q, p, "attention/query_norm", config), normed(k, p, "attention/key_norm", config)
        if kind != "no_rope":
            q, k = turned(q, config, kind), turned(k, config, kind)
        scores = q @ k.T / np.sqrt(config.query_scalar or size)
        outputs.append(softmax_causal(scores, config.sliding_window if kind == "window" else 0) @ v)
    return affine(np.concatenate(outputs, axis=-1), p, "output")


def affine(x, p, name):
    return x @ p[f"attention/{name}/kernel"] + p.get(f"attention/{name}/bias", 0.0)


def part(x, head, size):
    return x[:, head * size : (head + 1) * size]


def turned(x, config, kind):
    """Rotary embedding as multiplication by a unit complex number, of the pairs (i, i + size / 2)."""
    half = x.shape[-1] // 2
    if kind == "window" and config.window_rope_theta:
        speeds = [config.window_rope_theta ** (-i / half) for i in range(half)]
    else:
        speeds = [stretched(config.rope_theta ** (-i / half), config.rope_scaling) for i in range(half)]
    angles = np.outer(np.arange(len(x)), speeds)
    z = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1)


def stretched(speed, scaling):
    """One frequency, radians a position, as Llama 3.1 or linear interpolation stretch it."""
    if scaling.kind == "none":
        return speed
    if scaling.kind == "linear":
        return speed / scaling.factor
    wavelength = 2 * np.pi / speed
    if wavelength > scaling.original_length / scaling.low_frequency_factor:
        return speed / scaling.factor
    if wavelength < scaling.original_length / scaling.high_frequency_factor:
        return speed
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    smooth = (scaling.original_length / wavelength - low) / (high - low)
    return (1 - smooth) * speed / scaling.factor + smooth * speed


def softmax_causal(scores, window):
    weights = np.tril(np.exp(scores - scores.max(axis=-1, keepdims=True)))
    if window:
        weights = np.triu(weights, 1 - window)
    return weights / weights.sum(axis=-1, keepdims=True)
