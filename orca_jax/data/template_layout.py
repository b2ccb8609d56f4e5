"""The layout `template`: a conversation as its Hugging Face tokenizer's chat template writes it.

The ids are transformers' own. What the model has to say is all that the template writes after its prompt
(`add_generation_prompt`) and up to the special token that ends the turn; that this is the answer, that
the prompt's ids come first, and that there is such a token is checked for every answer. A template that
asks for the date (`strftime_now`) gives other ids on other days.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

from orca_jax.data.chat_template import Rendered, Span, TemplateError, render
from orca_jax.data.hf_tokenizer import HuggingFaceTokenizer, Token
from orca_jax.records import Message


@dataclasses.dataclass(frozen=True, slots=True)
class Chat:
    """Ids of a conversation, whether each carries loss, and its role: lists of one length."""

    ids: list[int]
    supervised: list[bool]
    roles: list[str]


def encode(messages: Sequence[Message], tokenizer: HuggingFaceTokenizer) -> Chat:
    """Tokens of a conversation, answers and their ends of turn supervised.

    Raises:
      TemplateError: the template fails, or an answer cannot be located exactly; says why.
    """
    written = _write(messages, tokenizer)
    supervised = [False] * len(written.tokens)
    roles = list(_roles(messages, written))
    for index, message in enumerate(messages):
        if message.role == "assistant":
            for n in _answer(messages, index, written, tokenizer).tokens:
                supervised[n], roles[n] = True, "assistant"
    return Chat(written.ids, supervised, roles)


@dataclasses.dataclass(frozen=True, slots=True)
class _Written:
    rendered: Rendered
    tokens: list[Token]

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def _write(messages: Sequence[Message], tokenizer: HuggingFaceTokenizer) -> _Written:
    prompt = messages[-1].role == "user"
    rendered = render(tokenizer.chat_template or "", messages, tokenizer.special_names, prompt=prompt)
    contents = [(span.start, span.end) for span in rendered.contents]
    return _Written(rendered, tokenizer.encode_rendered(rendered.text, contents))


def _roles(messages: Sequence[Message], written: _Written) -> Iterator[str]:
    """Each token's role, answers apart: that of the message to come; an answer's header is the user's."""
    spans = iter(written.rendered.contents)
    span = next(spans, None)
    for token in written.tokens:
        while span and token.start >= span.end:
            span = next(spans, None)
        role = messages[span.message].role if span else "user"
        yield "user" if role == "assistant" else role


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    """Positions of an answer's tokens, its end of turn the last, and what the template writes around it."""

    tokens: range
    frame: tuple[str, str]


def _answer(
    messages: Sequence[Message], index: int, written: _Written, tokenizer: HuggingFaceTokenizer
) -> _Answer:
    """What the model has to say for message `index`: all from the end of the prompt to the end of turn."""
    prompt, text = _write(messages[:index], tokenizer), written.rendered.text
    start, asked = len(prompt.tokens), len(prompt.rendered.text)
    if not text.startswith(prompt.rendered.text) or written.ids[:start] != prompt.ids:
        raise TemplateError(
            f"the chat template's prompt for message {index} is not the start of what it writes with the "
            "answer, so what is met at inference would not be what was trained on"
        )
    span = _content(written.rendered, index)
    end = _end(written, start, span)
    stopped = written.tokens[end].start
    block = _block(messages, written.rendered, span)
    for place in (text[asked : block.start], text[block.end : stopped]):
        if place.strip():
            raise TemplateError(
                f"the chat template writes {place!r} between message {index}, the answer, and the prompt "
                "before it or the special token after it"
            )
    return _Answer(range(start, end + 1), (text[asked : span.start], text[span.end : stopped]))


def _content(rendered: Rendered, index: int) -> Span:
    """Where message `index` stands. Raises TemplateError unless it does so once."""
    spans = [span for span in rendered.contents if span.message == index]
    if len(spans) != 1:
        raise TemplateError(f"the chat template writes message {index}, an answer, {len(spans)} times")
    return spans[0]


def _end(written: _Written, start: int, span: Span) -> int:
    """The position of the special token after a message; one that swallows white space begins within it."""
    for position in range(start, len(written.tokens)):
        token = written.tokens[position]
        if token.control and token.end > span.end:
            return position
    raise TemplateError(f"the chat template writes no special token after message {span.message}, the answer")


def _block(messages: Sequence[Message], rendered: Rendered, span: Span) -> Span:
    """The `{% generation %}` block around an answer; the answer itself in a template without them."""
    if not rendered.blocks:
        return span
    answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if len(rendered.blocks) != len(answers):
        raise TemplateError(
            f"the chat template has {len(rendered.blocks)} generation blocks for {len(answers)} answers"
        )
    block = rendered.blocks[answers.index(span.message)]
    if not block.start <= span.start <= span.end <= block.end:
        raise TemplateError(f"message {span.message}, an answer, is outside of its generation block")
    return block


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """The id that ends a turn, and what a template writes before and after the answer in it."""

    stop_id: int
    frame: tuple[str, str]


@functools.lru_cache(maxsize=4)
def probe(tokenizer: HuggingFaceTokenizer) -> Probe:
    """How a template ends and frames an answer, seen on the shortest conversation.

    Raises:
      TemplateError: even there the answer cannot be located.
    """
    messages = [Message("user", "a"), Message("assistant", "b")]
    written = _write(messages, tokenizer)
    answer = _answer(messages, 1, written, tokenizer)
    return Probe(written.ids[answer.tokens[-1]], answer.frame)
