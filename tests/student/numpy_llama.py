"""LLaMA for one sequence in plain numpy, float64, written from the papers: what the student must compute.

No batch, no mask but causality, no cache; one loop over layers and one over heads.
"""

import numpy as np


def forward(params, tokens, config):
    """Logits [n, vocab_size] of `tokens` [n] under per-layer parameters."""
    wide = {name: np.asarray(value, np.float64) for name, value in flat(params)}
    x = wide["embed/embedding"][tokens]
    for layer in range(config.num_layers):
        p = {
            name.split("/", 1)[1]: value for name, value in wide.items() if name.startswith(f"layer_{layer}/")
        }
        x = x + attention(rms_norm(x, p["attention_norm/scale"], config.norm_epsilon), p, config)
        x = x + swiglu(rms_norm(x, p["feed_forward_norm/scale"], config.norm_epsilon), p)
    head = wide["embed/embedding"].T if config.tie_embeddings else wide["unembed"]
    return (rms_norm(x, wide["norm/scale"], config.norm_epsilon) @ head)[:, : config.vocab_size]


def flat(tree, prefix=""):
    """(path, leaf) pairs of nested dictionaries."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def rms_norm(x, scale, epsilon):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * scale


def swiglu(x, p):
    gate = x @ p["feed_forward/gate/kernel"]
    return (gate / (1 + np.exp(-gate)) * (x @ p["feed_forward/up/kernel"])) @ p["feed_forward/down/kernel"]


def attention(x, p, config):
    size, shared = config.head_dim, config.num_heads // config.num_kv_heads
    outputs = []
    for head in range(config.num_heads):
        q = turned(part(affine(x, p, "query"), head, size), config)
        k = turned(part(affine(x, p, "key"), head // shared, size), config)
        v = part(affine(x, p, "value"), head // shared, size)
        outputs.append(softmax_causal(q @ k.T / np.sqrt(size), config.sliding_window) @ v)
    return affine(np.concatenate(outputs, axis=-1), p, "output")


def affine(x, p, name):
    return x @ p[f"attention/{name}/kernel"] + p.get(f"attention/{name}/bias", 0.0)


def part(x, head, size):
    return x[:, head * size : (head + 1) * size]


def turned(x, config):
    """Rotary embedding as multiplication by a unit complex number, of the pairs (i, i + size / 2)."""
    half = x.shape[-1] // 2
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
