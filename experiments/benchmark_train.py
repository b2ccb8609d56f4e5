"""The training step beside transformers and torch: same model, optimizer and rows; float32."""

from __future__ import annotations

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from orca_jax.config import LlamaConfig
from orca_jax.data.packing import make_plan
from orca_jax.data.rows import Row, build_row, stack
from orca_jax.experiments import benchmark_generate
from orca_jax.experiments.racing import YNN, Contestant, race
from orca_jax.reporting.tables import markdown
from orca_jax.student import llama, sharding
from orca_jax.training.optimizer import OptimizerConfig, make_optimizer
from orca_jax.training.step import make_steps

ROW = 512
SHAPES = {
    "1.6M": LlamaConfig(
        vocab_size=2048, hidden_size=128, intermediate_size=512, num_layers=4, scan_layers=False
    ),
    "30M": benchmark_generate.SHAPES["30M"],
}
ROWS = {"1.6M": 8, "30M": 4}


def dense_rows(rows: int, vocab: int, seed: int = 0) -> Row:
    """Rows of one segment each, every position supervised."""
    random = np.random.default_rng(seed)
    tokens = random.integers(3, vocab, (rows, ROW + 1), dtype=np.int32)
    ones = np.ones((rows, ROW), np.int32)
    positions = np.tile(np.arange(ROW, dtype=np.int32), (rows, 1))
    return Row(tokens[:, :-1], tokens[:, 1:], ones.astype(np.float32), ones, positions)


def uneven_examples(count: int, vocab: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Examples of log-normal lengths, about 2.7 a row as in the paper, the last half of each supervised."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(150), 0.7, count), 16, ROW + 1).astype(int)
    tokens = [random.integers(3, vocab, n, dtype=np.int32) for n in lengths]
    return [{"tokens": t, "weights": (np.arange(len(t)) >= len(t) // 2).astype(np.float32)} for t in tokens]


def packed_rows(examples: list[dict[str, np.ndarray]]) -> list[Row]:
    lengths = np.array([len(example["tokens"]) - 1 for example in examples])
    plan = make_plan(lengths, row_length=ROW, max_segments=32, seed=0, epoch=0)
    return [build_row([examples[i] for i in plan.row(r)], ROW, 0) for r in range(plan.rows)]


def ours(name: str, config: LlamaConfig, batches: list[Row], options: dict[str, str]) -> Contestant:
    """Our training step over `batches` in turn."""
    mesh = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(OptimizerConfig())
    steps = make_steps(config, optimizer, mesh, dtype=jnp.float32, accumulation=1, compiler_options=options)
    placed = [jax.device_put(batch, sharding.batch_sharding(mesh)) for batch in batches]
    state = [steps.init(llama.init(config, 0))]
    turn = iter(range(1 << 30))

    def step() -> None:
        state[0], metrics = steps.update(state[0], placed[next(turn) % len(placed)], jnp.float32(1e-4))
        metrics.loss.total.block_until_ready()

    filled = float(np.mean([np.count_nonzero(batch.segment_ids) for batch in batches]))
    return Contestant(name, step, filled, float(np.mean([batch.loss_weights.sum() for batch in batches])))


def theirs(name: str, config: LlamaConfig, batches: list[dict[str, np.ndarray]]) -> Contestant:
    """The same model, optimizer and clipping in transformers and torch, over padded `batches` in turn."""
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    placed = [{key: torch.from_numpy(array) for key, array in batch.items()} for batch in batches]
    turn = iter(range(1 << 30))

    def step() -> None:
        model(**placed[next(turn) % len(placed)]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    tokens = float(np.mean([batch["attention_mask"].sum() for batch in batches]))
    supervised = float(np.mean([(batch["labels"][:, 1:] != -100).sum() for batch in batches]))
    return Contestant(name, step, tokens, supervised)


def padded_batch(examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Examples as transformers' collators batch them: padded to the longest, labels -100 off the answer."""
    width = max(len(example["tokens"]) for example in examples)
    batch = {
        "input_ids": np.zeros((len(examples), width), np.int64),
        "attention_mask": np.zeros((len(examples), width), np.int64),
        "labels": np.full((len(examples), width), -100, np.int64),
    }
    for row, example in enumerate(examples):
        here = slice(0, len(example["tokens"]))
        batch["input_ids"][row, here] = example["tokens"]
        batch["attention_mask"][row, here] = 1
        batch["labels"][row, here] = np.where(example["weights"] > 0, example["tokens"], -100)
    return batch


def dense_padded(rows: Row) -> dict[str, np.ndarray]:
    """Dense rows for transformers, which shifts the labels itself."""
    tokens = rows.tokens.astype(np.int64)
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "labels": tokens}


def dense_race(shape: str, alone: bool) -> list[Contestant]:
    config = SHAPES[shape]
    rows = dense_rows(ROWS[shape], config.vocab_size)
    found = [
        ours("orca_jax", config, [rows], {}),
        ours("orca_jax, ynn dots", config, [rows], YNN),
    ]
    return found if alone else [*found, theirs("transformers", config, [dense_padded(rows)])]


def uneven_race(shape: str, alone: bool) -> list[Contestant]:
    """The same uneven examples, packed by us, padded by them; as many examples in a step of either."""
    config, rows_a_step = SHAPES[shape], ROWS[shape]
    examples = uneven_examples(24 * rows_a_step, config.vocab_size)
    rows = packed_rows(examples)
    batches = [stack(rows[i : i + rows_a_step]) for i in range(0, len(rows) - rows_a_step + 1, rows_a_step)]
    size = round(rows_a_step * len(examples) / len(rows))
    found = [ours("orca_jax packed, ynn dots", config, batches, YNN)]
    padded = [padded_batch(examples[i : i + size]) for i in range(0, len(examples) - size + 1, size)]
    return found if alone else [*found, theirs("transformers padded", config, padded)]


def report(title: str, contestants: list[Contestant], timed: list[list[float]]) -> None:
    """Tokens/s (median over rounds, and the range), and the ratio to the last contestant in each round."""
    seconds = np.array(timed)
    rows = []
    for i, contestant in enumerate(contestants):
        speed = contestant.tokens / seconds[:, i]
        supervised = contestant.supervised / seconds[:, i]
        last = contestants[-1].supervised / seconds[:, -1]
        ratio = supervised / last
        rows.append(
            [
                contestant.name,
                f"{np.median(seconds[:, i]) * 1e3:.0f}",
                f"{np.median(speed):.0f} ({speed.min():.0f}-{speed.max():.0f})",
                f"{np.median(supervised):.0f}",
                f"{np.median(ratio):.2f} ({ratio.min():.2f}-{ratio.max():.2f})",
            ]
        )
    header = [title, "ms a step", "tokens/s (range)", "supervised tokens/s", f"times {contestants[-1].name}"]
    print(markdown(header, rows), flush=True)


def train(alone: bool, rounds: int, seconds: float) -> None:
    races: dict[str, Callable[[str, bool], list[Contestant]]] = {"dense": dense_race, "uneven": uneven_race}
    for shape, (kind, make) in ((s, r) for s in SHAPES for r in races.items()):
        contestants = make(shape, alone)
        report(f"{shape}, {ROWS[shape]} x {ROW}, {kind}", contestants, race(contestants, rounds, seconds))
        print()
