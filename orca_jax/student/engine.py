"""Generation by continuous batching over the rows of one KV cache.

A request is *waiting* until a row of the cache is free, then *running* in it, then finished, which frees the
row. `Engine.step` does four things:

  schedule  gives free rows to waiting requests; the last rows move into those that stay free
  resize    gives the cache the rows and positions that the running requests need: a decoding step reads all
            of it. Positions that are cheap beside the weights stay, so one program serves a short chat
  prefill   computes keys and values of the new requests' prompts, less their last token; a prefix that
            several requests share is computed once and kept
  decode    up to 16 steps on the device

A row's first decoding step takes the prompt's last token, so ids are drawn in `decode` only. Shapes are
rounded up (on CPUs lengths to 64, 96, 128, 192, ..., on chips to 128, 256, 512, ..., rows to 1, 4, 16, ...),
and a program is compiled for each: see `decoding`. A reply depends only on its request's prompt, sampling
parameters, seed and number; sums over other shapes round differently, so two ids of exactly equal score may
change places.

`Generator` runs an engine for whole batches of prompts.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from orca_jax.student import decoding
from orca_jax.student.decoding import KV, LEAST, STEPS, Cache, Rows, bucket, coarse, row_bucket
from orca_jax.student.parameters import for_decoding, mesh_of, on_mesh
from orca_jax.student.presets import LlamaConfig
from orca_jax.student.sampling import SamplingParams
from orca_jax.student.scoring import Scorer

# By `Programs.fine`: prompts of one width that are computed together, at most; and how many times smaller
# than the weights a cache is that is not worth cutting.
PREFILL_ROWS, SMALL_CACHE = {True: 4, False: 1}, {True: 16, False: 2}
LEAST_SHARED = 32  # tokens; a shorter common prefix is computed again for each prompt
WORD = 0xFFFFFFFF
StopFunction = Callable[[Sequence[int]], int | None]


class Generated(NamedTuple):
    """A reply: ids int32 [n] without the stop token, whether a stop ended it, and log-probabilities.

    `log_probs`, float32 [n], are the student's at temperature 1, without top-k or top-p.
    """

    tokens: np.ndarray
    stopped: bool
    log_probs: np.ndarray


class Advance(NamedTuple):
    """New ids of a running request since the last step, and its reply if it has finished."""

    ticket: int
    tokens: list[int]
    finished: Generated | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A prompt and how to continue it.

    Attributes:
      prompt: int32 [n].
      max_tokens: the most ids that the reply may have, its stop token included.
      temperature, top_k, top_p: see `sampling`; temperature 0 is greedy, top_k 0 all ids.
      seed, number: of the random draws; requests of one seed differ by number.
      shared: length of the prefix that the prompt shares with other requests, computed once for all.
      stop: takes the ids so far and returns how many of them make the reply, or None to go on.
    """

    prompt: np.ndarray
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    number: int = 0
    shared: int = 0
    stop: StopFunction | None = None


@dataclasses.dataclass(eq=False)
class _Running:
    """A request in a row of the cache, or waiting for one.

    `shared` is how much of its prompt is a shared prefix, and `width` how many positions the prefill of the
    rest writes, with padding.
    """

    ticket: int
    request: Request
    limit: int
    shared: int
    width: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)

    @property
    def position(self) -> int:
        return len(self.request.prompt) - 1 + len(self.tokens)

    @property
    def last(self) -> int:
        return self.tokens[-1] if self.tokens else int(self.request.prompt[-1])


class Engine:
    """Generates from one student. Not thread-safe.

    Args:
      params, config: scanned or per-layer; decoding uses the per-layer view.
      stop_ids: ids that end a reply and are not part of it.
      slots: rows of the cache: how many requests run at once.
      max_length: prompt and reply together, in tokens.
      dtype: of computation and cache.
      mesh: devices to run on; by default those of the parameters. Heads of the cache are split over its
        tensor axis.
      compiler_options: XLA's, by name.
      programs: run in place of the compiled ones, to count them.
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
        programs: decoding.Programs | None = None,
    ):
        if slots < 1 or max_length < 2:
            raise ValueError(f"slots={slots} must be at least 1 and max_length={max_length} at least 2")
        self.mesh = mesh or mesh_of(params)
        self.params, self.config = for_decoding(params, config, dtype, self.mesh)
        self.slots, self.max_length, self.dtype = slots, max_length, dtype
        self.capacity = -(-(max_length + STEPS) // LEAST) * LEAST
        self._programs = programs or decoding.programs(
            self.config, jnp.dtype(dtype), tuple(sorted((compiler_options or {}).items()))
        )
        c, small = self.config, SMALL_CACHE[self._programs.fine]
        self._cheap = c.parameter_count // small // (2 * c.num_layers * c.num_kv_heads * c.head_dim)
        self._stops = np.array(sorted(set(map(int, stop_ids))), np.int32)
        self._waiting: collections.deque[_Running] = collections.deque()
        self._rows: list[_Running | None] = [None] * slots
        self._tickets = itertools.count()
        self._cache: Cache = ()
        self._last_prefix: tuple[bytes, Cache] = (b"", ())

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or any(self._rows)

    def add(self, request: Request) -> int:
        """Queues a request; returns the ticket that identifies it in the results of `step`.

        Raises:
          ValueError: the prompt is empty or leaves no room for a reply, or a setting is out of range.
        """
        size = len(request.prompt)
        if not 0 < size < self.max_length:
            raise ValueError(f"the prompt has {size} tokens; 1 to {self.max_length - 1} fit")
        for name, least in {"max_tokens": 1, "temperature": 0, "top_k": 0, "top_p": 0}.items():
            if (value := getattr(request, name)) < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        shared = min(request.shared, size - 1)
        width = min(self._rounded(size - 1 - shared), self.capacity - shared) if shared < size - 1 else 0
        limit = min(request.max_tokens, self.max_length - size)
        self._waiting.append(_Running(next(self._tickets), request, limit, shared, width))
        return self._waiting[-1].ticket

    def cancel(self, ticket: int) -> None:
        """Drops a request; does nothing if it has finished or is unknown."""
        self._waiting = collections.deque(entry for entry in self._waiting if entry.ticket != ticket)
        self._rows = [None if row and row.ticket == ticket else row for row in self._rows]

    def step(self) -> list[Advance]:
        """Schedules, prefills and decodes; returns the new ids of every running request."""
        with on_mesh(self.mesh):
            scheduled = self._schedule()
            running = [row for row in self._rows if row]
            if not running:
                return []
            self._resize(running)
            self._prefill_prompts(scheduled)
            rows, waiting = _row_arrays(running, row_bucket(len(running), self.slots)), bool(self._waiting)
            decoded, self._cache = self._programs.decode(
                self.params, self._cache, rows, self._stops, np.bool_(waiting)
            )
            ids, log_probs = jax.device_get(decoded)
            return [self._advance(slot, row, ids[slot], log_probs[slot]) for slot, row in enumerate(running)]

    def _schedule(self) -> list[tuple[int, _Running]]:
        """Fills free rows from the front, with waiting requests and then with the last rows.

        Returns:
          The newly scheduled requests with their rows.
        """
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        scheduled = [(slot, self._waiting.popleft()) for slot in free[: len(self._waiting)]]
        for slot, entry in scheduled:
            self._rows[slot] = entry
        count = sum(row is not None for row in self._rows)
        holes = [slot for slot in range(count) if self._rows[slot] is None]
        behind = [slot for slot in range(count, self.slots) if self._rows[slot] is not None]
        for hole, slot in zip(holes, behind):
            self._change(self._programs.move_row, np.int32(slot), np.int32(hole))
            self._rows[hole], self._rows[slot] = self._rows[slot], None
        return scheduled

    def _resize(self, running: list[_Running]) -> None:
        """Gives the cache the rows and positions that the next decoding steps and prefills need."""
        length = 0
        for row in running:
            written = max(self._rounded(row.shared) if row.shared else 0, row.shared + row.width)
            length = max(length, row.position + STEPS, written)
        rows = row_bucket(len(running), self.slots)
        length = self._rounded(max(length, self._cheap // rows))
        if not self._cache:
            self._cache = self._programs.empty(rows, length, self.dtype)
        elif self._cache[0].keys.shape[::2] != (rows, length):
            self._change(functools.partial(self._programs.resize, rows=rows, length=length))

    def _rounded(self, size: int) -> int:
        """Positions of a cache or a prefill that is compiled, for at least so many."""
        return min(bucket(size), self.capacity) if self._programs.fine else coarse(size, self.capacity)

    def _change(self, program: Callable[..., KV], *arguments: Any) -> None:
        """Runs a program on each layer's part, which is let go at once: there is no second cache."""
        layers, self._cache = collections.deque(self._cache), ()
        self._cache = tuple(program(layers.popleft(), *arguments) for _ in range(len(layers)))

    def _prefill_prompts(self, scheduled: list[tuple[int, _Running]]) -> None:
        """Prefills prompts with the same prefix and width together on CPUs, 4 at a time or one by one."""
        groups: dict[tuple[bytes, int], list[tuple[int, np.ndarray]]] = {}
        for slot, row in scheduled:
            body = row.request.prompt[:-1]
            prefix = np.asarray(body[: row.shared], np.int32).tobytes()
            groups.setdefault((prefix, row.width), []).append((slot, body[row.shared :]))
        for (prefix, width), members in groups.items():
            offset = len(prefix) // 4
            cached = self._prefix(prefix) if prefix else None
            if cached is not None:
                for slot, _ in members:
                    self._insert(cached, [slot], 0)
            size = PREFILL_ROWS[self._programs.fine]
            whole = len(members) // size * size if width else 0
            parts = [members[start : start + size] for start in range(0, whole, size)]
            for part in parts + [[member] for member in members[whole:] if width]:
                slots, bodies = zip(*part)
                self._insert(self._prefill(bodies, width, cached, offset), list(slots), offset)

    def _prefill(self, bodies: Sequence[np.ndarray], width: int, prefix: Cache | None, offset: int) -> Cache:
        tokens = np.zeros((len(bodies), width), np.int32)
        for row, body in zip(tokens, bodies):
            row[: len(body)] = body
        lengths = np.array([len(body) for body in bodies], np.int32)
        return self._programs.prefill(self.params, tokens, lengths, prefix, np.int32(offset))

    def _insert(self, added: Cache, slots: list[int], offset: int) -> None:
        rows, positions = np.array(slots, np.int32), np.full(len(slots), offset, np.int32)
        self._cache = tuple(
            self._programs.insert(layer, new, rows, positions) for layer, new in zip(self._cache, added)
        )

    def _prefix(self, prefix: bytes) -> Cache:
        """The cache of a shared prefix, computed unless it is the last one."""
        if prefix != self._last_prefix[0]:
            tokens = np.frombuffer(prefix, np.int32)
            width = self._rounded(len(tokens))
            self._last_prefix = prefix, self._prefill([tokens], width, None, 0)
        return self._last_prefix[1]

    def _advance(self, slot: int, row: _Running, ids: np.ndarray, log_probs: np.ndarray) -> Advance:
        """Adds the ids drawn for a row, and frees it if its request has finished."""
        count, before = int((ids >= 0).sum()), len(row.tokens)
        row.tokens += ids[:count].tolist()
        row.log_probs += log_probs[:count].tolist()
        stopped = row.tokens[-1] in self._stops
        length = len(row.tokens) - stopped
        end = row.request.stop(row.tokens[:length]) if row.request.stop else None
        if end is None and not stopped and len(row.tokens) < row.limit:
            return Advance(row.ticket, row.tokens[before:], None)
        self._rows[slot] = None
        finished = Generated(
            np.array(row.tokens[: length if end is None else end], np.int32),
            stopped or end is not None,
            np.array(row.log_probs[: length if end is None else end], np.float32),
        )
        return Advance(row.ticket, finished.tokens[before:].tolist(), finished)


def _row_arrays(running: list[_Running], size: int) -> Rows:
    """Running requests as arrays, filled up to `size` with inactive rows."""

    def column(value: Callable[[_Running], Any], dtype: Any) -> Any:
        values = [value(row) for row in running]
        return np.array(values + [values[0]] * (size - len(values)), dtype)

    limits = column(lambda row: row.limit, np.int32)
    limits[len(running) :] = 0
    return Rows(
        token=column(lambda row: row.last, np.int32),
        position=column(lambda row: row.position, np.int32),
        drawn=column(lambda row: len(row.tokens), np.int32),
        limit=limits,
        key=column(lambda row: (row.request.seed >> 32 & WORD, row.request.seed & WORD), np.uint32),
        number=column(lambda row: row.request.number & WORD, np.uint32),
        sampling=SamplingParams(
            column(lambda row: row.request.temperature, np.float32),
            column(lambda row: row.request.top_k, np.int32),
            column(lambda row: row.request.top_p, np.float32),
        ),
    )


class Generator:
    """Generates and scores batches with one student.

    Args:
      batch_size: `slots` of an engine: replies decoded together, at most.
      copies: of these devices each mesh gets a copy of the student too; `as_finished` uses all of them.
      params, config, stop_ids, max_length, dtype, mesh, compiler_options: see `Engine`.
    """

    def __init__(
        self,
        params: Any,
        config: LlamaConfig,
        *,
        stop_ids: Sequence[int],
        batch_size: int = 32,
        max_length: int = 2048,
        copies: Sequence[Mesh] = (),
        **options: Any,
    ):
        self.max_length, self._options = max_length, options
        sizes = dict(stop_ids=stop_ids, slots=batch_size, max_length=max_length)
        self._settings: dict[str, Any] = {**sizes, **options}
        self.engine = Engine(params, config, **self._settings)
        on_copies = (Engine(params, config, **{**self._settings, "mesh": mesh}) for mesh in copies)
        self._engines = [self.engine, *on_copies]

    @functools.cached_property
    def scorer(self) -> Scorer:
        """A scorer of the same student, made at its first use."""
        return Scorer(self.engine.params, self.engine.config, **self._options)

    def new_engine(self) -> Engine:
        """Another engine over the same parameters, with a cache of its own."""
        return Engine(self.engine.params, self.engine.config, **self._settings)

    def generate(self, prompts: Sequence[np.ndarray], **arguments: Any) -> list[Generated]:
        """Replies to prompts (int32 [n] each), in their order; see `as_finished` for arguments and errors."""
        found = dict(self.as_finished(prompts, **arguments))
        return [found[index] for index in range(len(prompts))]

    def as_finished(
        self,
        prompts: Sequence[np.ndarray],
        *,
        max_tokens: int | Sequence[int],
        numbers: Sequence[int] | None = None,
        **settings: Any,
    ) -> Iterator[tuple[int, Generated]]:
        """Yields replies as they finish, each with its prompt's index; a common prefix is computed once.

        Prompt `i` draws from (seed, numbers[i]), or from (seed, i), whatever the other prompts are.

        Args:
          max_tokens: of a reply, its stop token included; one number for all, or one each.
          settings: `temperature`, `top_k`, `top_p`, `seed` and `stop`, as in `Request`.

        Raises:
          ValueError: a prompt is empty or leaves no room for a reply, or a parameter is out of range.
        """
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) < self.max_length:
                raise ValueError(f"prompt {index} has {len(prompt)} tokens; 1 to {self.max_length - 1} fit")
        limits = list(max_tokens) if isinstance(max_tokens, Sequence) else [max_tokens] * len(prompts)
        numbers = range(len(prompts)) if numbers is None else numbers
        settings["shared"] = common_prefix(prompts)
        # The longest first, so that rows that run together have caches of similar length.
        waiting = collections.deque(
            (
                index,
                Request(prompt=prompts[index], max_tokens=limits[index], number=numbers[index], **settings),
            )
            for index in sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        )
        if len(self._engines) == 1:
            yield from _answers(self.engine, waiting)
            return
        found: queue.SimpleQueue[tuple[int, Generated] | None] = queue.SimpleQueue()

        def work(engine: Engine) -> None:
            try:
                for answer in _answers(engine, waiting):
                    found.put(answer)
            except BaseException:
                waiting.clear()
                raise
            finally:
                found.put(None)

        with concurrent.futures.ThreadPoolExecutor(len(self._engines)) as pool:
            working = [pool.submit(work, engine) for engine in self._engines]
            try:
                for _ in working:
                    yield from iter(found.get, None)
            finally:
                waiting.clear()  # nothing new is begun where the replies are not wanted any more
            for one in working:
                one.result()


def _answers(
    engine: Engine, waiting: collections.deque[tuple[int, Request]]
) -> Iterator[tuple[int, Generated]]:
    """The index and the reply of each request that the engine gets of a queue, which others may empty too."""
    tickets: dict[int, int] = {}
    try:
        while True:
            # One more than there are rows, so that the engine knows that a free row is wanted.
            while len(tickets) <= engine.slots:
                try:
                    index, request = waiting.popleft()
                except IndexError:
                    break
                tickets[engine.add(request)] = index
            if not tickets:
                return
            for advance in engine.step():
                if advance.finished is not None:
                    yield tickets.pop(advance.ticket), advance.finished
    finally:
        for ticket in tickets:
            engine.cancel(ticket)


def common_prefix(prompts: Sequence[np.ndarray]) -> int:
    """The length of the prefix that two or more prompts share; 0 if it is shorter than `LEAST_SHARED`."""
    if len(prompts) < 2:
        return 0
    shortest = min(map(len, prompts))
    first = np.asarray(prompts[0][:shortest])
    same = np.logical_and.reduce([np.asarray(prompt[:shortest]) == first for prompt in prompts])
    size = shortest if same.all() else int(same.argmin())
    return size if size >= LEAST_SHARED else 0
