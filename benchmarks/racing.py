"""Shared by the benchmarks: contestants timed in turns, their table, command lines, and training steps."""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from orca_jax.config import LoraConfig, MeshConfig, OptimizerConfig, OptimizerKind
from orca_jax.data.packing import make_plan
from orca_jax.data.rows import Row, build_row
from orca_jax.reporting.tables import markdown
from orca_jax.student import llama, sharding
from orca_jax.student.presets import LlamaConfig
from orca_jax.training.step import make_optimizer, make_steps


class Contestant(NamedTuple):
    """One way to do a job, which `step` does once; of a step's `tokens`, those `supervised` count."""

    name: str
    step: Callable[[], Any]
    tokens: float
    supervised: float


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


def report(title: str, contestants: Sequence[Contestant], seconds: np.ndarray, **columns: list[str]) -> None:
    """Prints medians over the rounds with their ranges, and the ratio to the last contestant a round."""

    def spread(values: np.ndarray, digits: int) -> list[str]:
        ends = zip(np.median(values, axis=0), values.min(axis=0), values.max(axis=0))
        return [f"{m:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})" for m, low, high in ends]

    rates = np.array([one.supervised for one in contestants]) / seconds
    cells = {
        title: [one.name for one in contestants],
        "ms a step": [f"{1e3 * median:.0f}" for median in np.median(seconds, axis=0)],
        "tokens/s (range)": spread(np.array([one.tokens for one in contestants]) / seconds, 0),
        "supervised tokens/s": [f"{rate:.0f}" for rate in np.median(rates, axis=0)],
        f"times {contestants[-1].name}": spread(rates / rates[:, -1:], 2),
        **columns,
    }
    print(markdown(list(cells), zip(*cells.values())), flush=True)


def command(main: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Calls `main` with the command line: `--name=value` for a parameter with a default, others in order."""
    parser = argparse.ArgumentParser(
        description=main.__globals__["__doc__"], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, parameter in inspect.signature(main).parameters.items():
        default: Any = parameter.default
        if default is parameter.empty:
            parser.add_argument(name)
        elif default is False:
            parser.add_argument(f"--{name}", action="store_true")
        else:
            parser.add_argument(f"--{name}", type=type(default), default=default, help=f"[{default!r}]")
    main(**vars(parser.parse_args(arguments)))


def student(vocab: int, hidden: int, intermediate: int, layers: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=intermediate, num_layers=layers,
        num_heads=heads, num_kv_heads=heads, head_dim=hidden // heads, scan_layers=False,
    )  # fmt: skip


def uneven_examples(
    count: int, vocab: int, longest: int, median: float, spread: float
) -> list[dict[str, np.ndarray]]:
    """Examples of log-normal lengths of at most `longest` positions, the last half of each supervised."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(np.log(median), spread, count), 2, longest).astype(int)
    tokens = [random.integers(3, vocab, length + 1, dtype=np.int32) for length in lengths]
    return [{"tokens": t, "weights": (np.arange(len(t)) >= len(t) // 2) * np.float32(1)} for t in tokens]


def packed_rows(examples: list[dict[str, np.ndarray]], row_length: int) -> list[Row]:
    lengths = np.array([len(example["tokens"]) - 1 for example in examples])
    plan = make_plan(lengths, row_length=row_length, max_segments=32, seed=0, epoch=0)
    return [build_row([examples[i] for i in plan.row(r)], row_length, 0) for r in range(plan.rows)]


def padded(arrays: Sequence[np.ndarray], fill: int = 0, left: bool = False) -> np.ndarray:
    """Arrays [n] of uneven lengths as int64 [b, longest], as transformers' collators pad them."""
    missing = [max(map(len, arrays)) - len(array) for array in arrays]
    sides = [(size, 0) if left else (0, size) for size in missing]
    return np.stack([np.pad(*both, constant_values=fill) for both in zip(arrays, sides)]).astype(np.int64)


def training_step(
    config: LlamaConfig,
    batches: Sequence[Row],
    dtype: str = "float32",
    kind: OptimizerKind = "adamw",
    options: Mapping[str, Any] | None = None,
    device: jax.Device | None = None,
) -> Callable[[], float]:
    """The step that `train` runs, over `batches` in turn, on one device; a call returns its mean loss."""
    mesh = sharding.make_mesh(MeshConfig(), [device or jax.devices()[0]])
    transform = make_optimizer(OptimizerConfig(kind=kind))
    settings: dict[str, Any] = dict(dtype=jnp.dtype(dtype), accumulation=1, compiler_options=options or {})
    steps = make_steps(config, transform, mesh, **settings)
    where = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract.params)
    state = steps.init(jax.jit(lambda: llama.init(config, 0), out_shardings=where)())
    turns = itertools.cycle([jax.device_put(batch, sharding.batch_sharding(mesh)) for batch in batches])

    def step() -> float:
        nonlocal state
        state, metrics = steps.update(state, next(turns), jnp.float32(1e-4))
        return float(metrics.loss.total / metrics.loss.weight)

    return step


def adapted(model: Any, config: LoraConfig) -> Any:
    import peft

    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
    targets = [names.get(name, f"{name}_proj") for name in config.targets]
    settings: Any = dict(r=config.rank, lora_alpha=config.alpha, target_modules=targets)
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def transformers_step(
    config: LlamaConfig, batches: Sequence[Mapping[str, np.ndarray]], attention: str, autocast: bool = False
) -> Callable[[], float]:
    """The same model, optimizer and clipping in transformers and torch, over `batches` of its arguments."""
    import torch
    import transformers

    from orca_jax.student import huggingface_folder

    torch.set_num_threads(os.cpu_count() or 1)
    cuda = torch.cuda.is_available()
    shape = transformers.LlamaConfig(**huggingface_folder.unparse(config) | {"use_cache": False})
    device = torch.device("cuda" if cuda else "cpu")
    with device:
        model: Any = transformers.AutoModelForCausalLM.from_config(shape, attn_implementation=attention)
    if config.lora.rank:
        model = adapted(model, config.lora)
    model.float().train()
    if config.remat == "full":
        model.gradient_checkpointing_enable()
    settings: Any = dict(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=cuda)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, **settings)
    turns = itertools.cycle([{k: torch.from_numpy(v).to(device) for k, v in b.items()} for b in batches])
    forward = torch.compile(model, dynamic=False) if cuda else model

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = forward(**next(turns)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step
