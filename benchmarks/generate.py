"""Generation beside transformers' `generate`: same weights, prompts, numbers of tokens; greedy, float32.

python -m benchmarks.generate --only="30M, mixed"     # races with this in their titles
python -m benchmarks.generate --bbh=BBH_FOLDER --tokenizer=tokenizer.model    # BBH's prompts race too

Ours runs on one device, whose matrix products use all cores, and with its heads over one device a core
(`JAX_NUM_CPU_DEVICES`, and `NPROC` for threads that collectives need), where each core attends too. The
weights are random, so a reply's length is set here; neither side knows it before.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import racing
from benchmarks.racing import Contestant, padded, student
from orca_jax.config import LlamaConfig, MeshConfig
from orca_jax.data import layouts
from orca_jax.data import tokenizer as tokenizers
from orca_jax.evaluation.benchmarks import bbh
from orca_jax.evaluation.benchmarks.base import conversation
from orca_jax.queries import system_messages
from orca_jax.student import huggingface, llama
from orca_jax.student.engine import Generator
from orca_jax.student.sharding import make_mesh

SHAPES = {"30M": student(8192, 512, 1408, 7, 8), "130M": student(32_000, 768, 2048, 12, 12)}
ROWS, STEPS_MESSAGE = 16, 7
COMPARED = 16  # first tokens of each reply


class Work(NamedTuple):
    """Prompts int32 [n] each, the number of tokens to generate for each, and the rows of a batch."""

    prompts: list[np.ndarray]
    limits: list[int]
    rows: int


def even(rows: int, vocab: int) -> Work:
    """Prompts and replies of 128 tokens each."""
    random = np.random.default_rng(0)
    return Work([random.integers(3, vocab, 128, np.int32) for _ in range(rows)], [128] * rows, rows)


def mixed(vocab: int, count: int = 4 * ROWS) -> Work:
    """Lengths as in an evaluation: prompts of 60 to 400 tokens, replies of 1 to 256, in no order."""
    random = np.random.default_rng(0)
    prompts = [random.integers(3, vocab, size, np.int32) for size in random.integers(60, 401, count)]
    return Work(prompts, random.integers(1, 257, count).tolist(), ROWS)


def evaluation(folder: str, tokenizer: str, vocab: int, count: int = 8 * ROWS) -> Work:
    """Questions of BBH as `evaluate` asks them step by step, evenly over its tasks; replies of 1 to 256.

    Ids beyond a smaller vocabulary are folded into it: only the lengths matter.
    """
    every = bbh.questions(folder, mode="orca_cot")
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, count).astype(int)]
    read, text = tokenizers.load(tokenizer), system_messages.get(STEPS_MESSAGE).text
    prompts = [layouts.encode(conversation(q, text), "orca", read).tokens % vocab for q in chosen]
    return Work(prompts, np.random.default_rng(0).integers(1, 257, count).tolist(), ROWS)


RACES: dict[str, Callable[[int], Work]] = {
    "1 x (128 + 128)": lambda vocab: even(1, vocab),
    f"{ROWS} x (128 + 128)": lambda vocab: even(ROWS, vocab),
    "mixed lengths": mixed,
}


def ours(params: Any, config: LlamaConfig, work: Work, tensor: int) -> Contestant:
    longest = max(len(prompt) + limit for prompt, limit in zip(work.prompts, work.limits))
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=tensor), jax.devices()[:tensor])
    sizes: dict[str, Any] = dict(batch_size=work.rows, max_length=longest + 1)
    generator = Generator(params, config, stop_ids=(), mesh=mesh, **sizes)
    replies: list[list[int]] = []

    def step() -> None:
        found = generator.generate(work.prompts, max_tokens=work.limits)
        replies[:] = [reply.tokens.tolist() for reply in found]

    count = sum(work.limits)
    return Contestant(f"orca_jax, {tensor} device(s)", step, count, count, replies)


def theirs(name: str, folder: str | Path, work: Work, *, by_length: bool = False) -> Contestant:
    """Batches as given or of like length, padded on the left, each run to the end of its longest reply."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    order = sorted(range(len(work.prompts)), key=lambda i: by_length * len(work.prompts[i]))
    batches = [order[start : start + work.rows] for start in range(0, len(order), work.rows)]
    inputs = [
        {key: torch.from_numpy(array) for key, array in pad_left([work.prompts[i] for i in batch]).items()}
        for batch in batches
    ]
    replies: list[list[int]] = [[] for _ in order]

    def step() -> None:
        for batch, each in zip(batches, inputs):
            longest = max(work.limits[i] for i in batch)
            with torch.inference_mode():
                out = model.generate(**each, max_new_tokens=longest, do_sample=False, pad_token_id=0)
            for i, row in zip(batch, out[:, each["input_ids"].shape[1] :].tolist()):
                replies[i] = row[: work.limits[i]]

    return Contestant(name, step, sum(work.limits), sum(work.limits), replies)


def pad_left(prompts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    mask = padded([np.ones_like(prompt) for prompt in prompts], left=True)
    return {"input_ids": padded(prompts, left=True), "attention_mask": mask}


def agreement(one: Sequence[list[int]], other: Sequence[list[int]]) -> float:
    """The share of replies that begin with the same tokens."""
    return float(np.mean([a[:COMPARED] == b[:COMPARED] for a, b in zip(one, other, strict=True)]))


def main(
    alone: bool = False,
    rounds: int = 3,
    seconds: float = 4.0,
    only: str = "",
    bbh: str = "",
    tokenizer: str = "",
) -> None:
    races = dict(RACES)
    if bbh:
        races["BBH prompts"] = lambda vocab: evaluation(bbh, tokenizer, vocab)
    titles = {f"{shape}, {kind}": (shape, kind) for shape in SHAPES for kind in races}
    chosen = {title: key for title, key in titles.items() if only in title}
    if bool(bbh) != bool(tokenizer) or not chosen:
        raise SystemExit(f"error: --only is a part of one of {list(titles)}; --bbh needs --tokenizer")
    for title, (shape, kind) in chosen.items():
        config, work = SHAPES[shape], races[kind](SHAPES[shape].vocab_size)
        params, spread = llama.init(config, 0), math.gcd(config.num_kv_heads, jax.device_count())
        contestants = [ours(params, config, work, tensor) for tensor in sorted({1, spread})]
        with tempfile.TemporaryDirectory() as folder:
            if not alone:
                huggingface.export(params, config, folder)
                if len(work.prompts) > work.rows:
                    contestants.append(theirs("transformers, by length", folder, work, by_length=True))
                contestants.append(theirs("transformers", folder, work))
            times, last = racing.race(contestants, rounds, seconds), contestants[-1]
        same = [f"{agreement(one.replies, last.replies):.0%}" for one in contestants]
        racing.report(title, contestants, times, {f"replies that begin as {last.name}'s": same})


if __name__ == "__main__":
    cores = os.cpu_count() or 1  # a device a core, and more threads than devices: see docs/generation.md
    os.environ.setdefault("NPROC", str(2 * cores))
    jax.config.update("jax_num_cpu_devices", cores)
    racing.command(main)
