"""What the benchmarks share: contestants timed in turns, tables, command lines, and the work they do."""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from orca_jax.config import LlamaConfig, MeshConfig, OptimizerConfig
from orca_jax.data.packing import make_plan
from orca_jax.data.rows import Row, build_row
from orca_jax.student import llama, sharding
from orca_jax.training.optimizer import make_optimizer
from orca_jax.training.step import make_steps

YNN = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}  # XLA's faster CPU matrix products


def student(vocab: int, hidden: int, intermediate: int, layers: int, heads: int) -> LlamaConfig:
    sizes: dict[str, Any] = {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": intermediate}
    attention: dict[str, Any] = {"num_heads": heads, "num_kv_heads": heads, "head_dim": hidden // heads}
    return LlamaConfig(**sizes, **attention, num_layers=layers, scan_layers=False)


class Contestant(NamedTuple):
    """One way to do a job: `step` does it once and waits for its end.

    `tokens` are those that a step processes, `supervised` those among them that count, `replies` what the
    last step generated.
    """

    name: str
    step: Callable[[], object]
    tokens: float
    supervised: float
    replies: Sequence[list[int]] = ()


def race(
    contestants: Sequence[Contestant],
    rounds: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """Seconds a step, float [rounds, contestants]; they take turns, so that noise meets all of them."""

    def turn(step: Callable[[], object]) -> float:
        started = clock()
        step()  # not counted: it pays for the turn before, whose threads still spin and whose memory is gone
        if 0 < 2 * seconds < (took := clock() - started):
            return took  # unless it is so long that this hardly matters
        started, steps = clock(), 0
        while clock() - started < seconds or steps < 2:
            step()
            steps += 1
        return (clock() - started) / steps

    for contestant in contestants:
        contestant.step()
    return np.array([[turn(contestant.step) for contestant in contestants] for _ in range(rounds)])


def report(
    title: str,
    contestants: Sequence[Contestant],
    seconds: np.ndarray,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Prints medians over the rounds with their ranges, and the ratio to the last contestant a round."""

    def spread(values: np.ndarray, digits: int) -> list[str]:
        ends = zip(np.median(values, axis=0), values.min(axis=0), values.max(axis=0))
        return [f"{m:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})" for m, low, high in ends]

    speeds = np.array([one.tokens for one in contestants]) / seconds
    rates = np.array([one.supervised for one in contestants]) / seconds
    cells = {
        title: [one.name for one in contestants],
        "ms a step": [f"{1e3 * median:.0f}" for median in np.median(seconds, axis=0)],
        "tokens/s (range)": spread(speeds, 0),
        "supervised tokens/s": [f"{rate:.0f}" for rate in np.median(rates, axis=0)],
        f"times {contestants[-1].name}": spread(rates / rates[:, -1:], 2),
        **(columns or {}),
    }
    print(markdown(list(cells), zip(*cells.values())), flush=True)


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; reporting's own needs packages that an image for GPUs may lack."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def command(main: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Calls `main` with the command line: `--name=value` for a parameter with a default or behind `*`."""
    parser = argparse.ArgumentParser(
        description=main.__globals__["__doc__"], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, parameter in inspect.signature(main).parameters.items():
        default: Any = parameter.default
        if default is inspect.Parameter.empty:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                parser.add_argument(f"--{name}", required=True)
            else:
                parser.add_argument(name)
        elif default is False:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=f"[{default!r}]")
    main(**vars(parser.parse_args(arguments)))


def uneven_examples(
    count: int, vocab: int, longest: int, median: float, spread: float, seed: int = 0
) -> list[dict[str, np.ndarray]]:
    """Examples of log-normal lengths of at most `longest` positions, the last half of each supervised."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(median), spread, count), 2, longest).astype(int)
    tokens = [random.integers(3, vocab, length + 1, dtype=np.int32) for length in lengths]
    return [{"tokens": t, "weights": (np.arange(len(t)) >= len(t) // 2) * np.float32(1)} for t in tokens]


def packed_rows(examples: list[dict[str, np.ndarray]], row_length: int, seed: int = 0) -> list[Row]:
    lengths = np.array([len(example["tokens"]) - 1 for example in examples])
    plan = make_plan(lengths, row_length=row_length, max_segments=32, seed=seed, epoch=0)
    return [build_row([examples[i] for i in plan.row(r)], row_length, 0) for r in range(plan.rows)]


def padded(arrays: Sequence[np.ndarray], fill: int = 0, left: bool = False) -> np.ndarray:
    """Arrays [n] of uneven lengths as int64 [b, longest], as transformers' collators pad them."""
    width = max(map(len, arrays))
    sides = [(width - len(array), 0) if left else (0, width - len(array)) for array in arrays]
    filled = [np.pad(array, side, constant_values=fill) for array, side in zip(arrays, sides)]
    return np.stack(filled).astype(np.int64)


def training_step(
    config: LlamaConfig,
    batches: Sequence[Row],
    dtype: str,
    optimizer: OptimizerConfig | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[], float]:
    """The step that `train` runs, over `batches` in turn, on one device; a call returns its mean loss."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    transform = make_optimizer(optimizer or OptimizerConfig())
    steps = make_steps(
        config, transform, mesh, dtype=jnp.dtype(dtype), accumulation=1, compiler_options=options or {}
    )
    where = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract.params)
    state = steps.init(jax.jit(lambda: llama.init(config, 0), out_shardings=where)())
    turns = itertools.cycle([jax.device_put(batch, sharding.batch_sharding(mesh)) for batch in batches])

    def step() -> float:
        nonlocal state
        state, metrics = steps.update(state, next(turns), jnp.float32(1e-4))
        return float(metrics.loss.total / metrics.loss.weight)

    return step


def transformers_step(
    config: LlamaConfig,
    batches: Sequence[Mapping[str, np.ndarray]],
    *,
    attention: str = "sdpa",
    autocast: bool = False,
) -> Callable[[], float]:
    """The same model, optimizer and clipping in transformers and torch, over `batches` of its arguments."""
    import torch
    import transformers

    from orca_jax.student import huggingface_folder

    torch.set_num_threads(os.cpu_count() or 1)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    shape = transformers.LlamaConfig(**huggingface_folder.unparse(config) | {"use_cache": False})
    with device:
        model: Any = transformers.AutoModelForCausalLM.from_config(shape, attn_implementation=attention)
    model.float().train()
    if config.remat == "full":
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=cuda
    )
    placed = [{key: torch.from_numpy(array).to(device) for key, array in batch.items()} for batch in batches]
    turns, forward = itertools.cycle(placed), torch.compile(model, dynamic=False) if cuda else model

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = forward(**next(turns)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step
