"""Generation beside transformers' `generate`: same weights, prompts, numbers of tokens; greedy, float32.

python -m benchmarks.generate --only="30M, mixed"     # races with this in their titles
python -m benchmarks.generate --model=exported         # a student on disk instead of the two shapes
python -m benchmarks.generate --bbh=BBH_FOLDER --tokenizer=tokenizer.model    # BBH's prompts race too

Ours runs on one device, whose matrix products use all cores, and with its heads over one device a core
(`JAX_NUM_CPU_DEVICES`, and `NPROC` for threads that collectives need), where each core attends too. A
reply's length is set here; neither side knows it before.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import racing
from benchmarks.racing import Contestant, padded, student
from orca_jax.config import MeshConfig
from orca_jax.data import layouts
from orca_jax.data import tokenizer as tokenizers
from orca_jax.evaluation.benchmarks import bbh as bbh_files
from orca_jax.evaluation.benchmarks.base import conversation
from orca_jax.queries import system_messages
from orca_jax.student import huggingface, llama
from orca_jax.student.engine import Generator
from orca_jax.student.presets import LlamaConfig
from orca_jax.student.sharding import make_mesh
from orca_jax.training import students

SHAPES = {"30M": student(8192, 512, 1408, 7, 8), "130M": student(32_000, 768, 2048, 12, 12)}
ROWS, STEPS_MESSAGE = 16, 7
COMPARED = 16  # first tokens of each reply


class Work(NamedTuple):
    """Prompts int32 [n] each, the number of tokens to generate for each, and the rows of a batch."""

    prompts: list[np.ndarray]
    limits: list[int]
    rows: int


def works(vocab: int, bbh: str = "", tokenizer: str = "") -> dict[str, Work]:
    """Even lengths; mixed ones in no order; with `bbh` its prompts step by step, evenly over its tasks.

    BBH's ids beyond a smaller vocabulary are folded into it: only the lengths matter.
    """
    random = np.random.default_rng(0)
    mixed = [random.integers(3, vocab, size, np.int32) for size in random.integers(60, 401, 4 * ROWS)]
    limits = random.integers(1, 257, 4 * ROWS).tolist()
    even = list(random.integers(3, vocab, (ROWS, 128), np.int32))
    found = {
        "1 x (128 + 128)": Work(even[:1], [128], 1),
        f"{ROWS} x (128 + 128)": Work(even, [128] * ROWS, ROWS),
        "mixed lengths": Work(mixed, limits, ROWS),
    }
    if bbh:
        every = bbh_files.questions(bbh, mode="orca_cot")
        chosen = [every[i] for i in np.linspace(0, len(every) - 1, 8 * ROWS).astype(int)]
        read, text = tokenizers.load(tokenizer), system_messages.get(STEPS_MESSAGE).text
        prompts = [layouts.encode(conversation(q, text), "orca", read).tokens % vocab for q in chosen]
        limits = np.random.default_rng(0).integers(1, 257, 8 * ROWS).tolist()
        found["BBH prompts"] = Work(prompts, limits, ROWS)
    return found


def ours(params: Any, config: LlamaConfig, work: Work, tensor: int) -> Contestant:
    longest = max(len(prompt) + limit for prompt, limit in zip(work.prompts, work.limits))
    mesh = make_mesh(MeshConfig(fsdp=1, tensor=tensor), jax.devices()[:tensor])
    sizes: dict[str, Any] = dict(batch_size=work.rows, max_length=longest + 1)
    generator = Generator(params, config, stop_ids=(), mesh=mesh, **sizes)

    def step() -> list[list[int]]:
        return [reply.tokens.tolist() for reply in generator.generate(work.prompts, max_tokens=work.limits)]

    return Contestant(f"orca_jax, {tensor} device(s)", step, sum(work.limits), sum(work.limits))


def theirs(name: str, folder: str, work: Work, by_length: bool = False) -> Contestant:
    """Batches as given or of like length, padded on the left, each run to the end of its longest reply."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    order = sorted(range(len(work.prompts)), key=lambda i: by_length * len(work.prompts[i]))
    batches = [order[start : start + work.rows] for start in range(0, len(order), work.rows)]
    inputs = [pad_left([work.prompts[i] for i in batch]) for batch in batches]

    def step() -> list[list[int]]:
        replies: dict[int, list[int]] = {}
        for batch, arrays in zip(batches, inputs):
            given = {key: torch.from_numpy(array) for key, array in arrays.items()}
            longest = max(work.limits[i] for i in batch)
            with torch.inference_mode():
                out = model.generate(**given, max_new_tokens=longest, do_sample=False, pad_token_id=0)
            replies |= zip(batch, out[:, arrays["input_ids"].shape[1] :].tolist())
        return [replies[i][:limit] for i, limit in enumerate(work.limits)]

    return Contestant(name, step, sum(work.limits), sum(work.limits))


def pad_left(prompts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    mask = padded([np.ones_like(prompt) for prompt in prompts], left=True)
    return {"input_ids": padded(prompts, left=True), "attention_mask": mask}


def agreement(one: Sequence[list[int]], other: Sequence[list[int]]) -> float:
    """The share of replies that begin with the same tokens."""
    return float(np.mean([a[:COMPARED] == b[:COMPARED] for a, b in zip(one, other, strict=True)]))


def students_of(model: str) -> Iterator[tuple[str, Any, LlamaConfig]]:
    """Names, parameters and shapes: of the student on disk, or of random weights."""
    if not model:
        yield from ((name, llama.init(config, 0), config) for name, config in SHAPES.items())
        return
    source = students.open_source(model)
    config = dataclasses.replace(source.config, scan_layers=False)
    yield Path(model).name, source.load(config, make_mesh(MeshConfig(), jax.devices()[:1])), config


def main(
    alone: bool = False, rounds: int = 3, only: str = "", model: str = "", bbh: str = "", tokenizer: str = ""
) -> None:
    ran = False
    for shape, params, config in students_of(model):
        spread = math.gcd(config.num_kv_heads, jax.device_count())
        for kind, work in works(config.vocab_size, bbh, tokenizer).items():
            if only not in f"{shape}, {kind}":
                continue
            ran = True
            contestants = [ours(params, config, work, tensor) for tensor in sorted({1, spread})]
            if not alone:
                with tempfile.TemporaryDirectory() as folder:
                    huggingface.export(params, config, folder)
                    if len(work.prompts) > work.rows:
                        contestants.append(theirs("transformers, by length", folder, work, by_length=True))
                    contestants.append(theirs("transformers", folder, work))
            times = racing.race(contestants, rounds, 1.0)
            replies = [one.step() for one in contestants]
            same = [f"{agreement(each, replies[-1]):.0%}" for each in replies]
            column = {f"replies that begin as {contestants[-1].name}'s": same}
            racing.report(f"{shape}, {kind}", contestants, times, **column)
    if not ran:
        raise SystemExit(f"error: no race has {only!r} in its title; BBH's need --bbh and --tokenizer")


if __name__ == "__main__":
    cores = os.cpu_count() or 1  # a device a core, and more threads than devices: see docs/generation.md
    os.environ.setdefault("NPROC", str(2 * cores))
    jax.config.update("jax_num_cpu_devices", cores)
    racing.command(main)
