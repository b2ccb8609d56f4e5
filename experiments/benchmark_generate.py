"""Generation beside transformers' `generate`: same weights, prompts, numbers of tokens; greedy, float32.

Ours runs on one device, whose matrix products use all cores, and with its heads over one device a core
(`JAX_NUM_CPU_DEVICES`, and `NPROC` for threads that collectives need), where each core attends too.

The weights are random, so a reply's length is set here, as if a stop token ended it: neither side knows it
before, or plans by it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from orca_jax.config import LlamaConfig
from orca_jax.data import layouts
from orca_jax.data import tokenizer as tokenizers
from orca_jax.evaluation.benchmarks import bbh
from orca_jax.evaluation.questions import conversation
from orca_jax.experiments.racing import Contestant, race
from orca_jax.queries import system_messages
from orca_jax.reporting.tables import markdown
from orca_jax.student import huggingface, llama
from orca_jax.student.engine import Generator
from orca_jax.student.sharding import MeshConfig, make_mesh

SHAPES = {
    "30M": LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_layers=7,
        num_heads=8,
        num_kv_heads=8,
        head_dim=64,
        scan_layers=False,
    ),
    "130M": LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_layers=12,
        num_heads=12,
        num_kv_heads=12,
        head_dim=64,
        scan_layers=False,
    ),
}
ROWS = 16
STEPS_MESSAGE = 7
COMPARED = 16  # first tokens of each reply

Replies = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Work:
    """Prompts int32 [n] each, the number of tokens to generate for each, and the rows of a batch."""

    prompts: list[np.ndarray]
    limits: list[int]
    rows: int


def even(rows: int, vocab: int, prompt: int = 128, new: int = 128) -> Work:
    """Prompts and replies of one length each."""
    random = np.random.default_rng(0)
    return Work([random.integers(3, vocab, prompt, np.int32) for _ in range(rows)], [new] * rows, rows)


def mixed(vocab: int, count: int = 4 * ROWS) -> Work:
    """Lengths as in an evaluation: prompts of 60 to 400 tokens, replies of 1 to 256, in no order."""
    random = np.random.default_rng(0)
    prompts = [random.integers(3, vocab, size, np.int32) for size in random.integers(60, 401, count)]
    return Work(prompts, random.integers(1, 257, count).tolist(), ROWS)


def evaluation(folder: str | Path, tokenizer: str | Path, vocab: int, count: int = 8 * ROWS) -> Work:
    """Questions of BBH as `evaluate` asks them step by step, evenly over its tasks; replies of 1 to 256.

    Ids beyond a smaller vocabulary are folded into it: only the lengths matter.
    """
    every = bbh.questions(folder, mode="orca_cot")
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, count).astype(int)]
    read, text = tokenizers.load(tokenizer), system_messages.get(STEPS_MESSAGE).text
    prompts = [layouts.encode(conversation(q, text), "orca", read).tokens % vocab for q in chosen]
    random = np.random.default_rng(0)
    return Work(prompts, random.integers(1, 257, count).tolist(), ROWS)


RACES: dict[str, Callable[[int], Work]] = {
    "1 x (128 + 128)": lambda vocab: even(1, vocab),
    f"{ROWS} x (128 + 128)": lambda vocab: even(ROWS, vocab),
    "mixed lengths": mixed,
}
BBH_RACE = "BBH prompts"


def ours(params: Any, config: LlamaConfig, work: Work, tensor: int) -> Contestant:
    longest = max(len(prompt) + limit for prompt, limit in zip(work.prompts, work.limits))
    generator = Generator(
        params,
        config,
        stop_ids=(),
        batch_size=work.rows,
        max_length=longest + 1,
        mesh=make_mesh(MeshConfig(fsdp=1, tensor=tensor), jax.devices()[:tensor]),
    )
    said: Replies = []

    def step() -> None:
        replies = generator.generate(work.prompts, max_tokens=work.limits)
        said[:] = [reply.tokens.tolist() for reply in replies]

    return Contestant(f"orca_jax, {tensor} device(s)", step, sum(work.limits), sum(work.limits), said)


def theirs(name: str, folder: Path, work: Work, *, by_length: bool = False) -> Contestant:
    """Batches as given or of like length, padded on the left, each run to the end of its longest reply."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    order = sorted(range(len(work.prompts)), key=lambda i: by_length * len(work.prompts[i]))
    batches = [order[start : start + work.rows] for start in range(0, len(order), work.rows)]
    padded = [
        {k: torch.from_numpy(v) for k, v in pad_left([work.prompts[i] for i in batch]).items()}
        for batch in batches
    ]
    said: Replies = [[] for _ in order]

    def step() -> None:
        for batch, inputs in zip(batches, padded):
            longest = max(work.limits[i] for i in batch)
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=longest, do_sample=False, pad_token_id=0)
            new = out[:, inputs["input_ids"].shape[1] :].tolist()
            for i, row in zip(batch, new):
                said[i] = row[: work.limits[i]]

    return Contestant(name, step, sum(work.limits), sum(work.limits), said)


def pad_left(prompts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    width = max(map(len, prompts))
    ids = np.zeros((len(prompts), width), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def agreement(one: Replies, other: Replies) -> float:
    """The share of replies that begin with the same tokens."""
    return float(np.mean([a[:COMPARED] == b[:COMPARED] for a, b in zip(one, other, strict=True)]))


def report(title: str, contestants: list[Contestant], timed: list[list[float]]) -> None:
    """New tokens/s (median over rounds, and the range), and the ratio to the last contestant's a round."""
    seconds = np.array(timed)
    rows = []
    for i, contestant in enumerate(contestants):
        speed, ratio = contestant.tokens / seconds[:, i], seconds[:, -1] / seconds[:, i]
        rows.append(
            [
                contestant.name,
                f"{np.median(seconds[:, i]):.2f}",
                f"{np.median(speed):.1f} ({speed.min():.1f}-{speed.max():.1f})",
                f"{np.median(ratio):.2f} ({ratio.min():.2f}-{ratio.max():.2f})",
                f"{agreement(contestant.said, contestants[-1].said):.0%}",
            ]
        )
    last = contestants[-1].name
    header = [title, "seconds", "new tokens/s (range)", f"times {last}", f"replies that begin as {last}'s"]
    print(markdown(header, rows), flush=True)


def use_every_core() -> None:
    """A device a core, and more threads than devices: see docs/generation.md."""
    cores = os.cpu_count() or 1
    os.environ.setdefault("NPROC", str(2 * cores))
    jax.config.update("jax_num_cpu_devices", cores)


def generate(
    alone: bool,
    rounds: int,
    seconds: float,
    shape: str | None = None,
    kind: str | None = None,
    bbh_folder: str | None = None,
    tokenizer: str | None = None,
) -> None:
    races = dict(RACES)
    if bool(bbh_folder) != bool(tokenizer):
        raise SystemExit("error: --bbh and --tokenizer belong together; give both or neither")
    if bbh_folder and tokenizer:
        races[BBH_RACE] = functools.partial(evaluation, bbh_folder, tokenizer)
    if kind and kind not in races:
        more = f"; {BBH_RACE!r} needs --bbh and --tokenizer" if kind == BBH_RACE else ""
        raise SystemExit(f"error: --race {kind!r}; known: {', '.join(races)}{more}")
    if shape and shape not in SHAPES:
        raise SystemExit(f"error: --shape {shape!r}; known: {', '.join(SHAPES)}")
    for name in [shape] if shape else SHAPES:
        config = SHAPES[name]
        spread = math.gcd(config.num_kv_heads, jax.device_count())
        params = llama.init(config, 0)
        with tempfile.TemporaryDirectory() as folder:
            if not alone:
                huggingface.export(params, config, folder)
            for chosen in [kind] if kind else races:
                work = races[chosen](config.vocab_size)
                contestants = [ours(params, config, work, tensor) for tensor in sorted({1, spread})]
                if not alone:
                    if len(work.prompts) > work.rows:
                        contestants.append(
                            theirs("transformers, by length", Path(folder), work, by_length=True)
                        )
                    contestants.append(theirs("transformers", Path(folder), work))
                report(f"{name}, {chosen}", contestants, race(contestants, rounds, seconds))
                print()
