"""What an evaluation costs on given chips: the engine's programs, their bytes and seconds, hours and price.

The engine itself schedules the questions, over programs that compute nothing and are counted; one copy of the
student answers its share of every round. Lengths are drawn, log-normal around a benchmark's medians. Seconds
are by roofline, with the shares of peaks that `estimate` assumes:

    max(FLOPs / peak, (weights + cache) / memory bandwidth) + sums over the tensor axis

The time of a launch, or of the first of a sum's bytes, is in none of it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from orca_jax.config import EvaluationConfig, LoraConfig
from orca_jax.evaluation.benchmarks import agieval, bbh, open_ended, truthfulqa
from orca_jax.evaluation.model import ROUND
from orca_jax.planning import estimate
from orca_jax.planning.chips import GIB, NO_PRICE, Topology
from orca_jax.planning.compile import Compiled, bytes_of, devices, too_large
from orca_jax.planning.estimate import MeshShape
from orca_jax.student import decoding, llama, sharding
from orca_jax.student.decoding import KV, STEPS
from orca_jax.student.engine import Generator
from orca_jax.student.parameters import cast
from orca_jax.student.presets import LlamaConfig
from orca_jax.student.sampling import Drawn, SamplingParams

SPREAD = 0.5  # of the logarithm of a length


class Asked(NamedTuple):
    """A benchmark's number of questions, and the median tokens of a prompt and of a reply to it."""

    questions: int
    prompt: int
    reply: int


# The paper's benchmarks: numbers of Tables 5 and 6 as far as their files can be scored; ToxiGen's is not
# stated. Prompts: medians in tokens of a 32,000-piece LLaMA tokenizer in mode `orca` with the empty message,
# of 10 of BBH's 23 files, 4 of AGIEval's 8, half of TruthfulQA and Vicuna's prompts; the other two open sets
# are taken to be like these. Replies: Vicuna-13B's to Vicuna's prompts (312), else assumed.
PAPER_ASKED = {
    "bbh": Asked(sum(bbh.TASKS[t].size for t in bbh.PAPER_TASKS) - 3, 169, 150),
    "agieval": Asked(sum(size for size, _ in agieval.TASKS.values()), 208, 150),
    "truthfulqa_mc": Asked(truthfulqa.USED[0], 103, 150),
    "vicuna_prompts": Asked(80, 36, 312),
    "awesome_prompts": Asked(open_ended.SOURCES["awesome_prompts"].sizes[0], 100, 312),
    "wizardlm_prompts": Asked(218, 100, 312),
}


class Program(NamedTuple):
    """A program of `decoding` and the sizes that it is compiled for, all in rows and positions.

    prefill: rows, width, positions of a shared prefix. decode, empty, move_row: those of the cache. insert:
    those of the cache and of what is added. resize: those before and after.
    """

    kind: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        after = f" after {self.sizes[2]}" if self.kind == "prefill" and self.sizes[2] else ""
        return f"{self.kind} {self.sizes[0]} x {self.sizes[1]}{after}"


class Counted:
    """Programs that compute nothing: `runs` counts each one's runs, of `decode` its steps."""

    def __init__(self) -> None:
        self.runs = collections.Counter[Program]()

    @property
    def programs(self) -> decoding.Programs:
        made = (self.empty, self.prefill, self.insert, self.move_row, self.resize, self.decode)
        return decoding.Programs(*made, fine=False)

    def _run(self, kind: str, *sizes: int, times: int = 1) -> None:
        self.runs[Program(kind, sizes)] += times

    def empty(self, rows: int, length: int, dtype: Any) -> Any:
        self._run("empty", rows, length)
        return (_kv(rows, length),)

    def prefill(self, params: Any, tokens: Any, lengths: Any, prefix: Any, offset: Any) -> Any:
        self._run("prefill", *tokens.shape, _size(prefix[0])[1] if prefix else 0)
        return (_kv(*tokens.shape),)

    def insert(self, kv: KV, added: KV, rows: Any, positions: Any) -> KV:
        self._run("insert", *_size(kv), *_size(added))
        return kv

    def move_row(self, kv: KV, source: Any, target: Any) -> KV:
        self._run("move_row", *_size(kv))
        return kv

    def resize(self, kv: KV, *, rows: int, length: int) -> KV:
        self._run("resize", *_size(kv), rows, length)
        return _kv(rows, length)

    def decode(self, params: Any, cached: Any, rows: decoding.Rows, stops: Any, waiting: Any) -> Any:
        left = np.minimum(np.asarray(rows.limit) - np.asarray(rows.drawn), STEPS)
        steps = int(left[left > 0].min() if waiting else left.max())
        self._run("decode", *_size(cached[0]), times=steps)
        ids = np.where(np.arange(STEPS) < np.minimum(left, steps)[:, None], 0, -1)
        return Drawn(ids, np.zeros(ids.shape, np.float32)), cached  # type: ignore[arg-type]


def _kv(rows: int, length: int) -> KV:
    """One layer's part, as a shape: nothing but rows and positions is looked at."""
    part: Any = jax.ShapeDtypeStruct((rows, 1, length, 1), jnp.bfloat16)
    return KV(part, part)


def _size(kv: KV) -> tuple[int, int]:
    return kv.keys.shape[0], kv.keys.shape[2]


def runs(
    student: LlamaConfig, asked: Mapping[str, Asked], own: EvaluationConfig, copies: int, message: int = 0
) -> collections.Counter[Program]:
    """How often one of the student's copies runs each program, to answer its share of all questions.

    Args:
      message: tokens of a system message before each question.
    """
    counted, random = Counted(), np.random.default_rng(own.seed)
    generator = Generator(
        {},
        student,
        stop_ids=(),
        batch_size=own.batch_size,
        max_length=own.max_length,
        programs=counted.programs,
    )
    round_size = ROUND * own.batch_size * (1 if own.temperature else copies)
    for one in asked.values():
        prompts, limits = (
            np.exp(random.normal(math.log(median), SPREAD, one.questions))
            for median in (one.prompt, one.reply)
        )
        sizes = np.sort(np.clip(prompts.astype(int) + message, message + 1, own.max_length - 1))
        replies = np.clip(limits, 1, own.max_tokens).astype(int)
        for start in range(0, one.questions, round_size):
            share = range(start, min(start + round_size, one.questions), copies)
            generator.generate(
                [np.r_[np.zeros(message, int), np.full(sizes[i] - message, i + 1)] for i in share],
                max_tokens=[int(replies[i]) for i in share],
            )
    return counted.runs


class Setting(NamedTuple):
    """What is evaluated where: `tensor` chips hold a copy of the student, all chips as many as they can."""

    student: LlamaConfig
    topology: Topology
    tensor: int
    dtype: Any

    @property
    def copies(self) -> int:
        return self.topology.chips // self.tensor

    @property
    def position(self) -> int:
        """Bytes of the cache for one position, on one chip."""
        c = self.student
        heads = c.num_kv_heads // (self.tensor if c.num_kv_heads % self.tensor == 0 else 1)
        return 2 * c.num_layers * heads * c.head_dim * jnp.dtype(self.dtype).itemsize

    def params(self) -> Any:
        """Shapes of the parameters as they are decoded with."""
        return jax.eval_shape(lambda: cast(llama.init(self.student, 0), self.dtype))


def setting(student: LlamaConfig, topology: Topology, own: EvaluationConfig) -> Setting:
    """The student as it is evaluated, in bfloat16 unless the config says otherwise.

    Raises:
      ValueError: `evaluation.tensor` does not divide the chips.
    """
    if topology.chips % own.tensor:
        raise ValueError(f"evaluation.tensor={own.tensor} does not divide {topology.chips} chips")
    per_layer = dataclasses.replace(student, scan_layers=False, remat="none", lora=LoraConfig())
    dtype = jnp.dtype("bfloat16" if own.dtype == "auto" else own.dtype)
    return Setting(per_layer, topology, own.tensor, dtype)


def seconds(program: Program, where: Setting) -> float:
    """Seconds of one run, of `decode` of one step, by roofline."""
    c, chip, tensor = where.student, where.topology.chip, where.tensor
    unembed = c.padded_vocab_size * c.hidden_size
    weights = c.training_flops(0) / 6  # of matrix products
    pair = 4 * c.num_layers * c.num_heads * c.head_dim  # FLOPs of a query and a key
    rows, length, *rest = program.sizes
    tokens, flops, size = 0, 0.0, 0.0
    match program.kind:
        case "decode":
            tokens, size = rows, weights * where.dtype.itemsize / tensor + rows * length * where.position
            flops = rows * (2 * weights + pair * length)
        case "prefill":
            tokens, weights = rows * length, weights - unembed
            size = weights * where.dtype.itemsize / tensor + (tokens + rest[0]) * where.position
            flops = tokens * (2 * weights + pair * (length / 2 + rest[0]))
        case "insert":
            size = 2 * math.prod(rest) * where.position / c.num_layers
        case "move_row":
            size = 2 * length * where.position / c.num_layers
        case "resize":
            size = (rows * length + math.prod(rest)) * where.position / c.num_layers
        case _:
            size = rows * length * where.position
    computing = flops / (tensor * chip.peak * chip.product_efficiency)
    reading = size / (chip.hbm_gb_per_s * 1e9 * estimate.HBM_EFFICIENCY)
    sums = 2 * c.num_layers * tokens * c.hidden_size * where.dtype.itemsize
    links = estimate.bandwidth(where.topology, tensor, "all-reduce") * estimate.LINK_EFFICIENCY
    return max(computing, reading) + estimate.ring_bytes("all-reduce", tensor, sums) / links


def total_seconds(found: Mapping[Program, int], where: Setting) -> float:
    """Of all runs; those on one layer's cache are counted for the one layer that stands for all."""
    layers = dict.fromkeys(("insert", "move_row", "resize"), where.student.num_layers)
    return sum(times * layers.get(one.kind, 1) * seconds(one, where) for one, times in found.items())


def lower(program: Program, where: Setting, mesh: Mesh) -> Any:
    """A prefill or a step's decoding, lowered on shapes."""
    c, dtype = where.student, where.dtype
    whole = sharding.replicated(mesh)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        where.params(), sharding.shardings(where.params(), mesh),
    )  # fmt: skip
    heads = PartitionSpec(None, "tensor" if c.num_kv_heads % where.tensor == 0 else None)

    def array(kind: Any, *shape: int, place: Any = whole) -> Any:
        return jax.ShapeDtypeStruct(shape, kind, sharding=place)

    def cache(rows: int, length: int) -> Any:
        part = array(dtype, rows, c.num_kv_heads, length, c.head_dim, place=NamedSharding(mesh, heads))
        return (KV(part, part),) * c.num_layers

    rows, length, *rest = program.sizes
    made: Any = decoding.programs(c, dtype)
    ids, numbers = array(jnp.int32, rows), array(jnp.float32, rows)
    with jax.set_mesh(mesh):
        if program.kind == "prefill":
            prefix = cache(1, rest[0]) if rest[0] else None
            return made.prefill.lower(params, array(jnp.int32, rows, length), ids, prefix, array(jnp.int32))
        key, sampling = array(jnp.uint32, rows, 2), SamplingParams(numbers, ids, numbers)
        state = decoding.Rows(ids, ids, ids, ids, key, ids, sampling)
        return made.decode.lower(params, cache(rows, length), state, array(jnp.int32, 1), array(bool))


def compiled(program: Program, where: Setting) -> Compiled:
    """Compiles a prefill or a decoding step for one copy's chips; raises PlanError as `devices`."""
    automatic = (AxisType.Auto,) * len(sharding.AXES)
    placed = np.array(devices(where.topology)[: where.tensor]).reshape(1, 1, -1)
    began, given = time.perf_counter(), needs(program, where)
    lowered = lower(program, where, Mesh(placed, sharding.AXES, axis_types=automatic))
    try:
        size = bytes_of(lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        return too_large(str(error), given, time.perf_counter() - began)
    return Compiled(size <= where.topology.chip.hbm_bytes, size, (), time.perf_counter() - began)


def needs(program: Program, where: Setting) -> int:
    """Bytes of one chip that are sure: weights, and the cache that is read or made."""
    weights = estimate.shard_bytes(where.params(), MeshShape(1, 1, where.tensor))
    return weights + (math.prod(program.sizes[:2]) + sum(program.sizes[2:])) * where.position


def plan(
    where: Setting, asked: Mapping[str, Asked], own: EvaluationConfig, *, message: int, analytic: bool
) -> dict[str, Any]:
    """What an evaluation needs and costs, as JSON values in bytes and seconds; bytes are one chip's.

    The largest prefill and the largest decoding step are compiled, for TPUs, unless `analytic`. A prefill's
    bytes are with the largest cache, which is there beside it.
    """
    found = runs(where.student, asked, own, where.copies, message)
    passes = sorted(one for one in found if one.kind in ("decode", "prefill"))
    largest = {kind: max(one for one in passes if one.kind == kind) for kind in ("decode", "prefill")}
    cache = max(math.prod(one.sizes) for one in passes if one.kind == "decode") * where.position
    rows = []
    for one in passes:
        beside = cache if one.kind == "prefill" else 0
        size, enough, took = needs(one, where) + beside, None, None
        if one in largest.values() and not analytic and where.topology.chip.kind == "tpu":
            made = compiled(one, where)
            size, took = made.total + beside, made.seconds
            enough = made.fits and size <= where.topology.chip.hbm_bytes
        enough = size <= estimate.USABLE * where.topology.chip.hbm_bytes if enough is None else enough
        tokens = one.sizes[0] * (one.sizes[1] if one.kind == "prefill" else 1)
        rows.append({
            "program": str(one), "runs": found[one], "bytes_per_chip": size, "fits": enough,
            "compile_seconds": took, "seconds": (time_of := seconds(one, where)),
            "tokens_per_second": tokens / time_of,
        })  # fmt: skip
    return {
        "topology": where.topology.name,
        "chips": where.topology.chips,
        "tensor": where.tensor,
        "copies": where.copies,
        "asked": {name: one._asdict() for name, one in asked.items()},
        "spread": SPREAD,
        "message": message,
        "hbm_bytes": where.topology.chip.hbm_bytes,
        "programs": rows,
        "cache_programs": len(found) - len(passes),
        "hours": (hours := total_seconds(found, where) / 3600),
        "chip_hours": hours * where.topology.chips,
    }


def report(name: str, values: Mapping[str, Any], price: float | None) -> str:
    """A `plan` in words."""
    lines = [
        f"{name} on {values['topology']}: {values['copies']} copies of {values['tensor']} chips each, "
        f"{values['hbm_bytes'] / GIB:.1f} GiB a chip",
        *[f"  {key}: {one['questions']:,} questions, {one['prompt']} tokens and {one['reply']} of a reply"
          for key, one in values["asked"].items()],
        f"  these are medians of log-normal lengths with a spread of {values['spread']}, after a system "
        f"message of {values['message']} tokens",
        *[f"{one['program']}: {one['bytes_per_chip'] / GIB:.1f} GiB a chip"
          + (f" (compiled in {one['compile_seconds']:.0f} s)" if one["compile_seconds"] else "")
          + ("" if one["fits"] else ", does not fit")
          + f"; {1000 * one['seconds']:.1f} ms, {one['tokens_per_second']:,.0f} tokens/s, "
          f"{one['runs']:,} times"
          for one in values["programs"]],
        f"{len(values['programs'])} programs run the student, {values['cache_programs']} others change one "
        "layer's cache",
        f"{values['hours']:.2f} hours, {values['chip_hours']:.2f} chip-hours by roofline, compiling apart",
    ]  # fmt: skip
    cost = NO_PRICE if price is None else f"{values['chip_hours'] * price:,.2f} US dollars"
    return "\n".join([*lines, cost])
