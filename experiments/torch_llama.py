"""A LLaMA decoder and its training step in torch, as the peer of ours on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from orca_jax.config import LlamaConfig
from orca_jax.data.rows import Row

Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def masked(segments: torch.Tensor) -> Mix:
    """Torch's own attention under a whole mask: causal, within segments [b, t]."""
    size = segments.shape[1]
    order = torch.arange(size, device=segments.device)
    seen = (segments[:, :, None] == segments[:, None, :]) & (order[:, None] >= order)
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None])


def flex(segments: torch.Tensor) -> Mix:
    """Flex attention, compiled: blocks of the mask that are empty are not computed."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (segments[b, q] == segments[b, k]) & (q >= k)

    rows, size = segments.shape
    blocks = create_block_mask(seen, rows, None, size, size, device=str(segments.device))
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=blocks)


ATTENTION = {"masked": masked, "flex": flex}


def rotations(config: LlamaConfig, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [b, 1, t, h / 2] of the rotary angles."""
    exponents = torch.arange(0, config.head_dim, 2, device=positions.device) / config.head_dim
    angles = positions[:, None, :, None] * config.rope_theta ** (-exponents)
    return torch.cos(angles), torch.sin(angles)


def rotated(x: torch.Tensor, by: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * by[0] - second * by[1], second * by[0] + first * by[1]], dim=-1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.heads, self.kv_heads, self.size = c.num_heads, c.num_kv_heads, c.head_dim
        wide, narrow = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.attention_norm = nn.RMSNorm(c.hidden_size, eps=c.norm_epsilon)
        self.feed_forward_norm = nn.RMSNorm(c.hidden_size, eps=c.norm_epsilon)
        self.query = nn.Linear(c.hidden_size, wide, bias=False)
        self.key = nn.Linear(c.hidden_size, narrow, bias=False)
        self.value = nn.Linear(c.hidden_size, narrow, bias=False)
        self.output = nn.Linear(wide, c.hidden_size, bias=False)
        self.gate = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, by: tuple[torch.Tensor, torch.Tensor], mix: Mix) -> torch.Tensor:
        b, t, _ = x.shape
        normed = self.attention_norm(x)
        query, key, value = (
            part(normed).view(b, t, -1, self.size).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        share = self.heads // self.kv_heads
        key, value = (part.repeat_interleave(share, 1) for part in (rotated(key, by), value))
        mixed = mix(rotated(query, by), key, value).transpose(1, 2).reshape(b, t, -1)
        x = x + self.output(mixed)
        normed = self.feed_forward_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Llama(nn.Module):
    """Untied embeddings; the loss in chunks of rows is torch's to optimise."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_epsilon)
        self.unembed = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and not name.startswith("embed"):
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))

    def forward(self, rows: Row, mix: Mix, remat: bool) -> torch.Tensor:
        """The mean loss of supervised positions; rows of torch tensors."""
        by = rotations(self.config, rows.positions)
        x = self.embed(rows.tokens)
        for layer in self.layers:
            x = checkpoint(layer, x, by, mix, use_reentrant=False) if remat else layer(x, by, mix)
        scores = self.unembed(self.norm(x)).float()[..., : self.config.vocab_size]
        losses = F.cross_entropy(scores.flatten(0, 1), rows.targets.flatten(), reduction="none")
        weights = rows.loss_weights.flatten()
        return (losses * weights).sum() / weights.sum()


def load(model: Llama, params: Any) -> None:
    """Our per-layer parameters, with embeddings not tied."""

    def put(target: nn.Parameter, value: Any) -> None:
        with torch.no_grad():
            target.copy_(torch.from_numpy(np.array(value)))

    put(model.embed.weight, params["embed"]["embedding"])
    put(model.unembed.weight, np.asarray(params["unembed"]).T)
    put(model.norm.weight, params["norm"]["scale"])
    for index, layer in enumerate(model.layers):
        ours = params[f"layer_{index}"]
        for part in ("attention", "feed_forward"):
            put(getattr(layer, f"{part}_norm").weight, ours[f"{part}_norm"]["scale"])
            for name, kernel in ours[part].items():
                put(getattr(layer, name).weight, np.asarray(kernel["kernel"]).T)


def on_device(batch: Row, device: torch.device) -> Row:
    arrays = [torch.from_numpy(np.array(array)).to(device) for array in batch]
    rows = Row(*arrays)
    return rows._replace(tokens=rows.tokens.long(), targets=rows.targets.long())


def training_step(
    config: LlamaConfig, batch: Row, attention: str, remat: str
) -> tuple[Callable[[], float], Callable[[], int], str]:
    """A step of AdamW over float32 parameters, products in bfloat16; its peak memory, and where it runs."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(0)
    with device:
        model = Llama(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=cuda
    )
    rows = on_device(batch, device)
    mix = ATTENTION[attention](rows.segment_ids)
    forward = torch.compile(model, dynamic=False) if cuda else model

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16):
            loss = forward(rows, mix, remat == "full")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def peak() -> int:
        return torch.cuda.max_memory_allocated() if cuda else 0

    return step, peak, torch.cuda.get_device_name() if cuda else "cpu"
