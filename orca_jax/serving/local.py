"""A student as something that answers conversations: in batches, as a stream, or as an endpoint."""

from __future__ import annotations

import bisect
import concurrent.futures
import dataclasses
import secrets
import zlib
from collections.abc import Generator as Generates
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from orca_jax import artifacts
from orca_jax.config import LoraConfig, MeshConfig
from orca_jax.data import layouts
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.layouts import LayoutError
from orca_jax.data.tokenizer import Tokenizer
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage
from orca_jax.serving.worker import Worker
from orca_jax.student import llama, lora, parameters, sharding
from orca_jax.student.engine import Generated, Generator, Request
from orca_jax.student.parameters import compute_dtype
from orca_jax.student.presets import LlamaConfig
from orca_jax.student.scoring import Score
from orca_jax.training.students import SavedStudent, open_source

Conversation = Sequence[Message]
TORN = "\ufffd"  # what a character decodes to of which some bytes are still to come


class Detokenizer:
    """Decodes replies in one layout; `stops` are texts that end them and are not part of them.

    Without a layout, a reply is all that its tokens spell. A stop that is a control token's name ends a
    reply where that token comes, which no text shows.
    """

    def __init__(self, tokenizer: Tokenizer, layout: str | None, stops: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.stops = tuple(stop for stop in stops if stop)
        self._stop_ids = {tokenizer.control_ids[stop] for stop in self.stops if stop in tokenizer.control_ids}
        self._before, self._after = layouts.answer_frame(layout, tokenizer) if layout else ("", "")

    def text(self, tokens: Sequence[int]) -> str:
        """The reply that tokens spell, up to the first stop text."""
        text = self._whole(tokens)
        return text[: min([text.find(stop) for stop in self.stops if stop in text], default=None)]

    def ends(self, tokens: Sequence[int]) -> int | None:
        """With how many tokens the first stop text was whole; None while there is none.

        It depends on the tokens alone, not on how many are looked at together.
        """
        stop = next((n for n, token in enumerate(tokens) if token in self._stop_ids), None)
        tokens = tokens[:stop]
        if not self._stopped(tokens):
            return stop
        return bisect.bisect_left(range(len(tokens)), True, key=lambda size: self._stopped(tokens[:size]))

    def stable_text(self, tokens: Sequence[int]) -> str:
        """The part of an unfinished reply's text that no later token changes."""
        decoded = self.tokenizer.decode(tokens)
        if self._before.startswith(decoded):
            return ""
        text = decoded.removeprefix(self._before).rstrip(TORN)
        # Its last characters may be the beginning of a stop, or of what the layout writes behind an answer.
        begun = (
            size
            for end in (*self.stops, self._after)
            for size in range(1, min(len(end), len(text)) + 1)
            if end.startswith(text[-size:])
        )
        return text[: len(text) - max(begun, default=0)]

    def _whole(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens).removeprefix(self._before).removesuffix(self._after)

    def _stopped(self, tokens: Sequence[int]) -> bool:
        text = self._whole(tokens) if self.stops else ""
        return any(stop in text for stop in self.stops)


class Delta(NamedTuple):
    """The next part of a reply's text; the last one comes with the whole reply."""

    text: str
    reply: Reply | None = None


class LocalStudent:
    """Answers conversations in this process, in the layout that the student was trained in.

    Args:
      checkpoint: names the parameters; with tokenizer, layout and type, it makes the student's identity.
      dtype: `float32` or `bfloat16`, of weights, cache and products.
      options: `batch_size`, `max_length`, `copies` and `compiler_options`, see `Generator`.
    """

    def __init__(
        self,
        params: Any,
        config: LlamaConfig,
        tokenizer: Tokenizer,
        layout: str,
        *,
        checkpoint: str,
        dtype: str = "float32",
        **options: Any,
    ):
        self.tokenizer, self.layout, self.dtype = tokenizer, layout, dtype
        self.stop_ids = layouts.stop_ids(layout, tokenizer)
        # Identities without a type are of a time when there was one only.
        of = [checkpoint, tokenizer.fingerprint, layout, *([] if dtype == "float32" else [dtype])]
        self.identity = f"student-{artifacts.digest(of)[:16]}"
        self.generator = Generator(
            params, config, stop_ids=self.stop_ids, dtype=compute_dtype(dtype), **options
        )

    def answer(self, conversations: Sequence[Conversation], sampling: Sampling) -> list[Reply]:
        """A reply to each conversation; one whose prompt leaves no space is an error reply."""
        replies = dict(self.as_finished(conversations, sampling))
        return [replies[index] for index in range(len(conversations))]

    def as_finished(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        *,
        numbers: Sequence[int] | None = None,
        top_k: int = 0,
    ) -> Iterator[tuple[int, Reply]]:
        """Replies with their conversation's index, as they finish.

        Conversation `i` draws by (the seed, numbers[i]), or by (the seed, i).
        """
        prompts = [self.prompt(conversation) for conversation in conversations]
        refused = {i: reply for i, prompt in enumerate(prompts) if (reply := self.too_long(prompt))}
        yield from refused.items()
        fits = [i for i in range(len(prompts)) if i not in refused]
        detokenizer = Detokenizer(self.tokenizer, self.layout, sampling.stop)
        generated = self.generator.as_finished(
            [prompts[i] for i in fits],
            numbers=fits if numbers is None else [numbers[i] for i in fits],
            **engine_settings(sampling, detokenizer, top_k),
        )
        for place, found in generated:
            index = fits[place]
            yield index, self.reply(prompts[index], found, detokenizer)

    def stream(
        self, messages: Conversation, sampling: Sampling, *, number: int = 0, top_k: int = 0
    ) -> Generates[Delta, None, None]:
        """A reply in parts: its deltas' texts joined are the reply's text, and what `answer` gives.

        One at a time, and while nothing else is being answered.
        """
        prompt = self.prompt(messages)
        if refused := self.too_long(prompt):
            yield Delta("", refused)
            return
        detokenizer, engine = Detokenizer(self.tokenizer, self.layout, sampling.stop), self.generator.engine
        settings = engine_settings(sampling, detokenizer, top_k)
        ticket = engine.add(Request(prompt=prompt, number=number, **settings))
        tokens: list[int] = []
        shown = 0
        try:
            while True:
                (advance,) = engine.step()
                if advance.finished is not None:
                    reply = self.reply(prompt, advance.finished, detokenizer)
                    yield Delta(reply.text[shown:], reply)
                    return
                tokens += advance.tokens
                text = detokenizer.stable_text(tokens)
                yield Delta(text[shown:])
                shown = len(text)
        finally:
            engine.cancel(ticket)

    def log_likelihoods(self, pairs: Sequence[tuple[Conversation, str]]) -> list[Score]:
        """How likely each text is as the next answer of its conversation; its end of turn is not counted.

        What the layout writes between prompt and answer (a space, say) is counted.
        """
        prompts = [self.prompt(messages) for messages, _ in pairs]
        begun = [self._begun(messages, text) for messages, text in pairs]
        continuations = [ids[len(prompt) :] for prompt, ids in zip(prompts, begun)]
        return self.generator.scorer.score(prompts, continuations)

    def go_on(self, pairs: Sequence[tuple[Conversation, str]], sampling: Sampling) -> list[Reply]:
        """What follows each text, with which the next answer of its conversation begins."""
        prompts = [self._begun(messages, text) for messages, text in pairs]
        detokenizer = Detokenizer(self.tokenizer, self.layout, sampling.stop)
        settings = engine_settings(sampling, detokenizer)
        found = dict(self.generator.as_finished(prompts, numbers=range(len(prompts)), **settings))
        return [self.reply(prompt, found[index], detokenizer) for index, prompt in enumerate(prompts)]

    def _begun(self, messages: Conversation, text: str) -> np.ndarray:
        """Ids int32 [n] of a conversation and an answer, without the end of its turn."""
        whole = layouts.encode([*messages, Message("assistant", text)], self.layout, self.tokenizer)
        return whole.tokens[: np.flatnonzero(whole.weights)[-1]]

    def prompt(self, messages: Conversation) -> np.ndarray:
        """Ids int32 [n] of a conversation, up to where the answer begins.

        Raises:
          LayoutError: the turns do not alternate.
        """
        return layouts.encode(messages, self.layout, self.tokenizer).tokens

    def too_long(self, prompt: np.ndarray) -> Reply | None:
        """The error reply to a prompt that leaves no space; None: it leaves some."""
        most = self.generator.max_length
        error = {"error": f"prompt exceeds {most} tokens"}
        return Reply(Outcome.ERROR, "", raw=error) if len(prompt) >= most else None

    def reply(self, prompt: np.ndarray, generated: Generated, detokenizer: Detokenizer) -> Reply:
        """The engine's output as a reply."""
        text = detokenizer.text(generated.tokens.tolist())
        stopped = Outcome.OK if text.strip() else Outcome.EMPTY
        outcome = stopped if generated.stopped else Outcome.LENGTH
        return Reply(outcome, text, Usage(len(prompt), len(generated.tokens)))


def engine_settings(sampling: Sampling, detokenizer: Detokenizer, top_k: int = 0) -> dict[str, Any]:
    """How the engine continues a prompt, as arguments of its `Request`."""
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_k": top_k,
        "top_p": sampling.top_p,
        "seed": sampling.seed or 0,
        "stop": detokenizer.ends if detokenizer.stops else None,
    }


def prompt_number(prompt: np.ndarray) -> int:
    """By which the prompts of one seed draw differently, and each always alike."""
    return zlib.crc32(prompt.tobytes())


class InTraining:
    """Makes students of parameters as a training step has them, adapters and stacked layers included.

    Args:
      mesh: where the parameters are.
      here: where the students shall be, this host's devices; a whole parameter is on each device meanwhile.
    """

    def __init__(self, student: LlamaConfig, mesh: Mesh, dtype: DTypeLike, here: Mesh | None = None):
        self.config = dataclasses.replace(student, lora=LoraConfig(), scan_layers=False)
        self.dtype, self._mesh, self._here = jnp.dtype(dtype), mesh, here if here != mesh else None

        def convert(params: Any) -> Any:
            merged, _ = parameters.per_layer(lora.merge(params, student.lora), student)
            return parameters.cast(merged, self.dtype)

        shapes = jax.eval_shape(lambda: convert(llama.init(student, 0)))
        self._convert = jax.jit(convert, out_shardings=sharding.shardings(shapes, mesh))
        self._replicate = jax.jit(lambda leaf: leaf, out_shardings=sharding.replicated(mesh))

    def __call__(self, params: Any, tokenizer: Tokenizer, layout: str, **options: Any) -> LocalStudent:
        """A student with a copy of the parameters; options as of `LocalStudent`."""
        with jax.set_mesh(self._mesh):  # the current one may be that of this host
            kept = self._convert(params)
            if self._here:
                kept = jax.tree.map(self._moved, kept, sharding.shardings(kept, self._here))
        options |= {"checkpoint": "being trained", "dtype": self.dtype.name}
        return LocalStudent(kept, self.config, tokenizer, layout, **options)

    def _moved(self, leaf: jax.Array, placement: NamedSharding) -> jax.Array:
        return jax.device_put(self._replicate(leaf).addressable_data(0), placement)


class StudentEndpoint:
    """A local student as an endpoint for `teachers`, to be closed. A thread of its own runs the engine.

    Requests that wait together share the engine's rows, and a reply depends on its own conversation and
    sampling alone. Without a seed, each sampled reply differs.
    """

    def __init__(self, student: LocalStudent):
        self._student, self.identity = student, student.identity
        self._worker = Worker(student.generator)

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Answers a conversation; errors become an error reply with their message."""
        student = self._student
        detokenizer = Detokenizer(student.tokenizer, student.layout, sampling.stop)
        if sampling.seed is None:
            sampling = dataclasses.replace(sampling, seed=secrets.randbits(32))
        try:
            prompt = student.prompt(messages)
            if refused := student.too_long(prompt):
                return refused
            settings = engine_settings(sampling, detokenizer)
            request = Request(prompt=prompt, number=prompt_number(prompt), **settings)
            (generated,) = await self._worker.results([request])
        except Exception as error:  # a request that cannot be answered must not end the others
            return Reply(Outcome.ERROR, "", raw={"error": f"{type(error).__name__}: {error}"})
        return student.reply(prompt, generated, detokenizer)

    def close(self) -> None:
        """Ends the thread; requests that still run get an error reply."""
        self._worker.close()


def device_groups(tensor: int, copies: int) -> list[list[jax.Device]]:
    """Groups of `tensor` devices of this host, one a copy; 0 copies: as many as there are, on CPUs one.

    Raises:
      ValueError: there are too few devices.
    """
    devices = jax.local_devices()
    copies = copies or (1 if devices[0].platform == "cpu" else max(len(devices) // tensor, 1))
    if tensor * copies > len(devices):
        raise ValueError(
            f"{copies} copies over {tensor} devices each are more than this host's {len(devices)} devices; "
            "lower copies or tensor"
        )
    return [devices[start : start + tensor] for start in range(0, tensor * copies, tensor)]


def load_student(
    source: SavedStudent | str | Path,
    layout: str = "",
    *,
    tensor: int = 1,
    copies: int = 1,
    dtype: str = "auto",
    **options: Any,
) -> LocalStudent:
    """A student on disk, ready to answer, its layers split over `tensor` devices of this host.

    Args:
      source: a student that is open, or what opens it, see `open_source`.
      layout: of prompts; empty: the student's own.
      copies: how many groups of devices have the student and answer batches together, see `device_groups`.
      dtype: of weights, cache and products, see `parameters.compute_dtype`.
      options: see `LocalStudent`.

    Raises:
      LayoutError: the layout is not known, and none is given.
      ValueError: this host has too few devices.
    """
    if not isinstance(source, SavedStudent):
        source = open_source(source)
    axes = MeshConfig(fsdp=1, tensor=tensor)
    mesh, *others = (sharding.make_mesh(axes, group) for group in device_groups(tensor, copies))
    layout = layout or source.own_layout
    if not layout:
        raise LayoutError(f"{source.tokenizer} does not say its prompt layout; give --layout")
    config = dataclasses.replace(source.config, scan_layers=False)
    kind = compute_dtype(dtype)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # a first answer waits for all three
        tokenizer = pool.submit(tokenizers.load, source.tokenizer)
        fingerprint = pool.submit(lambda: source.fingerprint)
        params = source.load(config, mesh, kind)
    return LocalStudent(
        params,
        config,
        tokenizer.result(),
        layout,
        checkpoint=fingerprint.result(),
        dtype=kind.name,
        copies=others,
        **options,
    )
