"""The generation engine: continuous batching over the rows of one cache.

A request is *waiting* until a row of the cache is free, then *running* in it, then finished, when its row is
given away at once. `Engine.step` does three things:

  seat    waiting requests take free rows, and the last rows move into those that stay free; the cache then
          gets as many rows and columns as the running requests need, and not more: a step reads all of it
  read    prompts of requests just scheduled, less their last token, are read into their rows; what several
          share at their start is read once and kept
  decode  up to 16 steps on the device

A row's first step takes the prompt's last token, so ids are drawn in `decode` alone. Shapes are rounded up
(lengths to 64, 96, 128, 192, ..., rows to 1, 4, 16, ...), and a program is compiled for each: see
`decoding`. What a request says depends on its prompt, settings, seed and number only; sums over other shapes
round differently, so that two ids of exactly equal score may change places.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from orca_jax.config import LlamaConfig
from orca_jax.student import cache, decoding, parameters
from orca_jax.student.decoding import STEPS, Rows
from orca_jax.student.sampling import Settings

LEAST = 64  # the smallest bucket of lengths
FINE = 512  # from here on, what a smaller bucket saves outweighs one more program to compile
READ_ROWS = 4  # prompts of one bucket that are read together, at most
KEPT_PREFIXES = 4
WORD = 0xFFFFFFFF
StopFunction = Callable[[Sequence[int]], int | None]


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
    ends: StopFunction | None = None


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
    """The next of 64, 96, 128, 192, ..., 512, 640, 768, 896, 1024, ...: few, and the large ones close."""
    power = least
    while power < size:
        power *= 2
    parts = 4 if power > FINE else 2  # between the power of two and the one before it
    step = max(power // (2 * parts), 1)
    return max(least, -(-size // step) * step)


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
        self._cache: cache.Cache = ()
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
        for name, least in {"max_tokens": 1, "temperature": 0, "top_k": 0, "top_p": 0}.items():
            if (value := getattr(request, name)) < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        ticket = next(self._tickets)
        self._waiting.append(_Running(ticket, request, min(request.max_tokens, self.max_length - size)))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Forgets a request; one that has finished, or is not known, is no error."""
        self._waiting = collections.deque(entry for entry in self._waiting if entry.ticket != ticket)
        self._rows = [None if row and row.ticket == ticket else row for row in self._rows]

    def step(self) -> list[Advance]:
        """Seats, reads and decodes; what running requests said meanwhile."""
        with on_mesh(self.mesh):
            scheduled = self._schedule()
            running = [row for row in self._rows if row]
            if not running:
                return []
            self._resize(running)
            self._read_prompts(scheduled)
            return self._decode(running)

    # Seating

    def _schedule(self) -> list[tuple[int, Request]]:
        """Fills free rows from the front, with waiting requests and then with the last rows; the new ones."""
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        scheduled = [(slot, self._waiting.popleft()) for slot in free[: len(self._waiting)]]
        for slot, entry in scheduled:
            self._rows[slot] = entry
        count = sum(row is not None for row in self._rows)
        holes = [slot for slot in range(count) if self._rows[slot] is None]
        behind = [slot for slot in range(count, self.slots) if self._rows[slot] is not None]
        for hole, slot in zip(holes, behind):
            self._change(self._programs.move, np.int32(slot), np.int32(hole))
            self._rows[hole], self._rows[slot] = self._rows[slot], None
        return [(slot, entry.request) for slot, entry in scheduled]

    def _resize(self, running: list[_Running]) -> None:
        """Gives the cache the rows and columns that the next steps need."""
        rows = row_bucket(len(running), self.slots)
        length = max(max(row.position + STEPS, self._written(row.request)) for row in running)
        length = min(bucket(length), self.capacity)
        if not self._cache:
            shape = self.config, rows, length, self.dtype
            self._cache = jax.jit(lambda: cache.empty(*shape))()
        elif self._cache[0].keys.shape[::2] != (rows, length):
            self._change(functools.partial(self._programs.resize, rows=rows, length=length))

    def _change(self, program: Callable[..., cache.KV], *arguments: Any) -> None:
        self._cache = tuple(program(layer, *arguments) for layer in self._cache)

    # Reading

    def _width(self, request: Request) -> int:
        """Columns of what is read of a prompt behind its shared part."""
        body = len(request.prompt) - 1 - self._shared(request)
        return min(bucket(body), self.capacity - self._shared(request)) if body else 0

    def _written(self, request: Request) -> int:
        """Columns that reading a prompt writes, its padding among them."""
        shared = self._shared(request)
        return max(min(bucket(shared), self.capacity), shared + self._width(request))

    def _shared(self, request: Request) -> int:
        return min(request.shared, len(request.prompt) - 1)

    def _read_prompts(self, scheduled: list[tuple[int, Request]]) -> None:
        groups: dict[tuple[bytes, int], list[tuple[int, np.ndarray]]] = {}
        for slot, request in scheduled:
            shared, body = self._shared(request), request.prompt[:-1]
            prefix = np.asarray(body[:shared], np.int32).tobytes()
            groups.setdefault((prefix, self._width(request)), []).append((slot, body[shared:]))
        for (prefix, width), members in groups.items():
            for part in _in_parts(members, READ_ROWS):
                self._read(prefix, width, *zip(*part))

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
        rows, positions = np.array(slots, np.int32), np.full(len(slots), offset, np.int32)
        self._cache = tuple(
            self._programs.place(held, new, rows, positions) for held, new in zip(self._cache, added)
        )

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

    def _decode(self, running: list[_Running]) -> list[Advance]:
        rows = _rows(running, row_bucket(len(running), self.slots))
        waiting = np.bool_(bool(self._waiting))
        said, self._cache = self._programs.decode(self.params, self._cache, rows, self._stops, waiting)
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


def _in_parts(members: list[Any], largest: int) -> Iterator[list[Any]]:
    """Cuts a list in parts of `largest` and of one: two sizes occur, and none is filled up."""
    whole = len(members) // largest * largest
    yield from (members[start : start + largest] for start in range(0, whole, largest))
    yield from ([member] for member in members[whole:])
