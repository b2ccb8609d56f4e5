"""The generation engine: continuous batching over the rows of one cache.

A request is *waiting* until a row of the cache is free, then *running* in it, then finished, when its row is
given away at once. `Engine.step` does three things:

  admit   prompts of waiting requests, less their last token, are read and placed in free rows; what several
          share at their start is read once and kept
  pack    running rows are moved to the front, so that few rows are decoded when few are running
  decode  up to 16 steps on the device, over the running rows and as many columns as the longest has

A row's first step takes the prompt's last token, so ids are drawn in `decode` alone. Shapes are rounded up
(lengths to 64, 96, 128, 192, 256, ..., rows to 1, 4, 16, ...), and a program is compiled for each: see
`decoding`. What a request says depends on its prompt, settings, seed and number only; sums over other shapes
round differently, so that two ids of exactly equal score may change places.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from orca_jax.student import cache, decoding, parameters
from orca_jax.student.config import LlamaConfig
from orca_jax.student.decoding import STEPS, Rows
from orca_jax.student.sampling import Settings

LEAST = 64  # the smallest bucket of lengths
READ_ROWS = 4  # prompts of one bucket that are read together, at most
KEPT_PREFIXES = 4
WORD = 0xFFFFFFFF
Ends = Callable[[Sequence[int]], int | None]


class Generated(NamedTuple):
    """A reply: ids int32 [n] without the stop token, whether something stopped it, and its log-probabilities.

    `log_probs` float32 [n] are the student's own, at temperature 1, with nothing cut off.
    """

    tokens: np.ndarray
    stopped: bool
    log_probs: np.ndarray


class Advance(NamedTuple):
    """Ids that a running request has said since the last step, and its reply if it has finished."""

    ticket: int
    tokens: list[int]
    finished: Generated | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What one request asks for.

    Attributes:
      prompt: int32 [n].
      max_tokens: ids of the reply at most, its stop token among them.
      temperature, top_k, top_p: see `sampling`; temperature 0 is greedy, top_k 0 all ids.
      seed, number: what it draws by. Equal ones draw alike; requests of one seed differ by number.
      shared: how many of the prompt's first tokens other requests share; worth reading once for all.
      ends: of the ids drawn so far, how many make the reply; None while it goes on.
    """

    prompt: np.ndarray
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    number: int = 0
    shared: int = 0
    ends: Ends | None = None


@dataclasses.dataclass(eq=False)
class _Running:
    ticket: int
    request: Request
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)

    @property
    def position(self) -> int:
        return len(self.request.prompt) - 1 + len(self.tokens)

    @property
    def last(self) -> int:
        return self.tokens[-1] if self.tokens else int(self.request.prompt[-1])

    def generated(self, count: int, stopped: bool) -> Generated:
        tokens = np.array(self.tokens[:count], np.int32)
        return Generated(tokens, stopped, np.array(self.log_probs[:count], np.float32))


def bucket(size: int, least: int = LEAST) -> int:
    """The next of 64, 96, 128, 192, 256, ...: of few shapes, one that wastes little."""
    power = least
    while power < size:
        if size <= power * 3 // 2:
            return power * 3 // 2
        power *= 2
    return power


def row_bucket(count: int, slots: int) -> int:
    """The next of 1, 4, 16, ..., at most `slots`."""
    size = 1
    while size < count:
        size *= 4
    return min(size, slots)


def mesh_of(params: Any) -> Mesh | None:
    """The mesh of several devices that parameters lie on, if they do."""
    for leaf in jax.tree.leaves(params):
        placed = getattr(leaf, "sharding", None)
        if isinstance(placed, NamedSharding) and isinstance(placed.mesh, Mesh) and placed.mesh.size > 1:
            return placed.mesh
    return None


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """The context in which that mesh is in force; without one, any."""
    return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()


class Engine:
    """Generates from one student; for one thread.

    Args:
      params, config: either view; decoding uses the per-layer one.
      stop_ids: ids that end a reply and are not part of it.
      slots: rows of the cache, so requests that run at once.
      max_length: prompt and reply together, in tokens.
      dtype: of computation and cache.
      mesh: where it runs; None: where the parameters lie. Heads of the cache go over its tensor axis.
      compiler_options: XLA's, by name.
    """

    def __init__(
        self,
        params: Any,
        config: LlamaConfig,
        *,
        stop_ids: Sequence[int] = (),
        slots: int = 32,
        max_length: int = 2048,
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
        compiler_options: Mapping[str, str] | None = None,
    ):
        if slots < 1 or max_length < 2:
            raise ValueError(f"slots={slots} must be at least 1 and max_length={max_length} at least 2")
        self.mesh = mesh or mesh_of(params)
        self.params, self.config = parameters.for_decoding(params, config, dtype, self.mesh)
        self.slots, self.max_length, self.dtype = slots, max_length, dtype
        self.capacity = bucket(max_length + STEPS)
        self._programs = decoding.programs(
            self.config, jnp.dtype(dtype), tuple(sorted((compiler_options or {}).items()))
        )
        self._stops = np.array(sorted(set(map(int, stop_ids))), np.int32)
        self._waiting: collections.deque[_Running] = collections.deque()
        self._rows: list[_Running | None] = [None] * slots
        self._tickets = itertools.count()
        self._cache: cache.Cache | None = None
        self._prefixes: collections.OrderedDict[bytes, cache.Cache] = collections.OrderedDict()

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or any(self._rows)

    def add(self, request: Request) -> int:
        """Queues a request; the ticket is its name in what `step` returns.

        Raises:
          ValueError: the prompt is empty or leaves no room for a reply, or a setting is out of range.
        """
        size = len(request.prompt)
        if not 0 < size < self.max_length:
            raise ValueError(f"the prompt has {size} tokens; 1 to {self.max_length - 1} fit")
        if request.max_tokens < 1 or request.temperature < 0 or request.top_k < 0 or request.top_p < 0:
            raise ValueError(f"max_tokens must be at least 1, the others of {request} at least 0")
        ticket = next(self._tickets)
        self._waiting.append(_Running(ticket, request, min(request.max_tokens, self.max_length - size)))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Forgets a request; one that has finished, or is not known, is no error."""
        self._waiting = collections.deque(entry for entry in self._waiting if entry.ticket != ticket)
        self._rows = [None if row and row.ticket == ticket else row for row in self._rows]

    def step(self) -> list[Advance]:
        """Admits, packs and decodes; what running requests said meanwhile."""
        with on_mesh(self.mesh):
            self._admit()
            self._pack()
            running = [row for row in self._rows if row]
            return self._decode(running) if running else []

    # Admission

    def _admit(self) -> None:
        if self._cache is None:
            shape = self.config, self.slots, self.capacity, self.dtype
            self._cache = jax.jit(lambda: cache.empty(*shape))()
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        admitted = [(slot, self._waiting.popleft()) for slot in free[: len(self._waiting)]]
        groups: dict[tuple[bytes, int], list[tuple[int, np.ndarray]]] = {}
        for slot, entry in admitted:
            self._rows[slot] = entry
            shared, body = self._shared(entry.request), entry.request.prompt[:-1]
            prefix = np.asarray(body[:shared], np.int32).tobytes()
            width = min(bucket(len(body) - shared), self.capacity - shared) if len(body) > shared else 0
            groups.setdefault((prefix, width), []).append((slot, body[shared:]))
        for (prefix, width), members in groups.items():
            for part in _in_powers(members, READ_ROWS):
                self._read(prefix, width, *zip(*part))

    def _shared(self, request: Request) -> int:
        return min(request.shared, len(request.prompt) - 1)

    def _read(
        self, prefix: bytes, width: int, slots: tuple[int, ...], bodies: tuple[np.ndarray, ...]
    ) -> None:
        """Reads bodies of one bucket behind a prefix into rows of the cache."""
        offset = len(prefix) // 4
        past = self._prefix(prefix) if prefix else None
        if past is not None:
            for slot in slots:
                self._place(past, [slot], 0)
        if width:
            self._place(self._run_read(bodies, width, past, offset), list(slots), offset)

    def _run_read(
        self, bodies: Sequence[np.ndarray], width: int, past: cache.Cache | None, offset: int
    ) -> cache.Cache:
        tokens = np.zeros((len(bodies), width), np.int32)
        for row, body in zip(tokens, bodies):
            row[: len(body)] = body
        lengths = np.array([len(body) for body in bodies], np.int32)
        return self._programs.read(self.params, tokens, lengths, past, np.int32(offset))

    def _place(self, added: cache.Cache, slots: list[int], offset: int) -> None:
        positions = np.full(len(slots), offset, np.int32)
        self._cache = self._programs.place(self._cache, added, np.array(slots, np.int32), positions)

    def _prefix(self, prefix: bytes) -> cache.Cache:
        """The cache of a shared prefix, read at its first use; the last few are kept."""
        if prefix not in self._prefixes:
            tokens = np.frombuffer(prefix, np.int32)
            self._prefixes[prefix] = self._run_read(
                [tokens], min(bucket(len(tokens)), self.capacity), None, 0
            )
        self._prefixes.move_to_end(prefix)
        while len(self._prefixes) > KEPT_PREFIXES:
            self._prefixes.popitem(last=False)
        return self._prefixes[prefix]

    # Decoding

    def _pack(self) -> None:
        """Moves running rows to the front."""
        count = sum(row is not None for row in self._rows)
        holes = [slot for slot in range(count) if self._rows[slot] is None]
        behind = [slot for slot in range(count, self.slots) if self._rows[slot] is not None]
        for hole, slot in zip(holes, behind):
            self._cache = self._programs.move(self._cache, np.int32(slot), np.int32(hole))
            self._rows[hole], self._rows[slot] = self._rows[slot], None

    def _decode(self, running: list[_Running]) -> list[Advance]:
        seen = min(bucket(max(row.position for row in running)), self.capacity)
        rows = _rows(running, row_bucket(len(running), self.slots))
        waiting = np.bool_(bool(self._waiting))
        said, self._cache = self._programs.decode(
            self.params, self._cache, rows, self._stops, waiting, seen=seen
        )
        ids, log_probs = jax.device_get(said)
        return [self._advance(slot, row, ids[slot], log_probs[slot]) for slot, row in enumerate(running)]

    def _advance(self, slot: int, row: _Running, ids: np.ndarray, log_probs: np.ndarray) -> Advance:
        count, before = int((ids >= 0).sum()), len(row.tokens)
        row.tokens += ids[:count].tolist()
        row.log_probs += log_probs[:count].tolist()
        finished = self._finished(row)
        if finished is None:
            return Advance(row.ticket, row.tokens[before:], None)
        self._rows[slot] = None
        return Advance(row.ticket, finished.tokens[before:].tolist(), finished)

    def _finished(self, row: _Running) -> Generated | None:
        stopped = row.tokens[-1] in self._stops
        spoken = len(row.tokens) - stopped
        end = row.request.ends(row.tokens[:spoken]) if row.request.ends else None
        if end is not None:
            return row.generated(end, True)
        if stopped or len(row.tokens) >= row.limit:
            return row.generated(spoken, stopped)
        return None


def _rows(running: list[_Running], size: int) -> Rows:
    """Running requests as arrays, filled up to `size` with rows that stand still."""
    asked = [row.request for row in running]

    def column(values: list[Any], dtype: Any) -> Any:
        return np.array(values + [values[0]] * (size - len(values)), dtype)

    limits = [row.limit for row in running] + [0] * (size - len(running))
    return Rows(
        token=column([row.last for row in running], np.int32),
        position=column([row.position for row in running], np.int32),
        drawn=column([len(row.tokens) for row in running], np.int32),
        limit=column(limits, np.int32),
        key=column([(r.seed >> 32 & WORD, r.seed & WORD) for r in asked], np.uint32),
        number=column([r.number & WORD for r in asked], np.uint32),
        settings=Settings(
            column([r.temperature for r in asked], np.float32),
            column([r.top_k for r in asked], np.int32),
            column([r.top_p for r in asked], np.float32),
        ),
    )


def _in_powers(members: list[Any], largest: int) -> Iterator[list[Any]]:
    """Cuts a list in parts of `largest`, then of half as many: few sizes occur, and none is filled up."""
    start = 0
    while start < len(members):
        while largest > len(members) - start:
            largest //= 2
        yield members[start : start + largest]
        start += largest
