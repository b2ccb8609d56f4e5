"""Chat templates (jinja) of Hugging Face tokenizers, and the layout `template`, which writes what they write.

Templates are programs from strangers: they run in jinja's sandbox. A template is rendered once with the
messages and once with a placeholder for each; where the second, filled in, is not exactly the first, the
template's use of a message is not understood and the conversation is refused rather than guessed at.

The ids are transformers' own. What the model has to say is all that the template writes after its prompt
(`add_generation_prompt`) and up to the special token that ends the turn; that this is the answer, that
the prompt's ids come first, and that there is such a token is checked for every answer. A template that
asks for the date (`strftime_now`) gives other ids on other days.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from orca_jax.data.hf_tokenizer import HuggingFaceTokenizer, Token
from orca_jax.records import Message


class LayoutError(ValueError):
    """A conversation does not fit a layout; the message says where."""


class TemplateError(LayoutError):
    """A template fails, or its use of a message cannot be located; the message says where."""


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a rendered text. `message` is an index, for a block the number of it."""

    start: int
    end: int
    message: int


@dataclasses.dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered conversation: the places of the messages' contents and of `{% generation %}` blocks."""

    text: str
    contents: tuple[Span, ...]
    blocks: tuple[Span, ...]


# Marks in a rendering: a placeholder is START number END, and PAD is white space that a template may trim.
# All but PAD are private-use characters; a conversation that contains one of them gets other ones.
START, END, OPEN, CLOSE, PAD = "\ue100", "\ue101", "\ue102", "\ue103", "\u2003"
MARKS = START + END + OPEN + CLOSE
FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class _GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`: what the assistant says, put between marks if asked."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own attribute)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        context = jinja2.nodes.ContextReference()
        return jinja2.nodes.CallBlock(self.call_method("_mark", [context]), [], [], body).set_lineno(line)

    def _mark(self, context: Any, caller: Callable[[], str]) -> str:
        written = caller()
        return f"{OPEN}{written}{CLOSE}" if context.get("mark_generation") else written


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: jinja's own filter escapes it for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=16)
def compiled(template: str) -> jinja2.Template:
    """A template in the environment that transformers gives to templates.

    Raises:
      TemplateError: it is no jinja template.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals.update(
        raise_exception=raise_exception, strftime_now=lambda form: datetime.datetime.now().strftime(form)
    )
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the chat template cannot be read: {error}") from error


def text_of(
    template: str,
    contents: Sequence[tuple[str, str]],
    variables: Mapping[str, str],
    prompt: bool,
    mark: bool = False,
) -> str:
    """What a template writes of (role, content) pairs.

    Raises:
      TemplateError: the template is no jinja, or refuses the conversation.
    """
    messages = [{"role": role, "content": content} for role, content in contents]
    try:
        return compiled(template).render(
            messages=messages,
            add_generation_prompt=prompt,
            tools=None,
            documents=None,
            mark_generation=mark,
            **variables,
        )
    except FAILURES as error:
        if isinstance(error, TemplateError):
            raise
        raise TemplateError(f"the chat template refuses the conversation: {error}") from error


def render(
    template: str, messages: Sequence[Message], variables: Mapping[str, str], *, prompt: bool
) -> Rendered:
    """A conversation in a template; `variables` are the special tokens' names (`bos_token`, ...).

    `prompt`: the header of the answer to come ends the text (`add_generation_prompt`).

    Raises:
      TemplateError: the template fails, or does something to a message other than trimming it.
    """
    contents = [message.content for message in messages]
    if any(mark in content for content in contents for mark in MARKS):
        raise TemplateError("a message has one of the characters U+E100 to U+E103, which mark places here")
    text = text_of(template, [(m.role, m.content) for m in messages], variables, prompt)
    held = [
        # An empty question or system message stands for itself: templates look whether there is one.
        (m.role, f"{PAD}{START}{i}{END}{PAD}" if m.role == "assistant" or m.content.strip() else m.content)
        for i, m in enumerate(messages)
    ]
    rendered = _filled(text_of(template, held, variables, prompt, mark=True), contents)
    if (filled := rendered.text) != text:
        at = next((i for i, (a, b) in enumerate(zip(filled, text)) if a != b), min(len(filled), len(text)))
        raise TemplateError(
            "the chat template changes a message otherwise than by trimming it, or writes something else "
            f"for its content: near character {at}, {text[max(0, at - 20) : at + 20]!r}"
        )
    return rendered


_PLACES = re.compile(f"({PAD}?){START}([0-9]+){END}({PAD}?)|{OPEN}|{CLOSE}")


def _filled(marked: str, contents: Sequence[str]) -> Rendered:
    """The text with contents for placeholders, trimmed where the placeholder's white space was."""
    text = ""
    spans: list[Span] = []
    blocks: list[Span] = []
    position = opened = 0
    for found in _PLACES.finditer(marked):
        text += marked[position : found.start()]
        position = found.end()
        if found.group() == OPEN:
            opened = len(text)
        elif found.group() == CLOSE:
            blocks.append(Span(opened, len(text), len(blocks)))
        else:
            content = contents[int(found[2])]
            content = content if found[1] else content.lstrip()
            content = content if found[3] else content.rstrip()
            spans.append(Span(len(text), len(text) + len(content), int(found[2])))
            text += content
    return Rendered(text + marked[position:], tuple(spans), tuple(blocks))


# The layout


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
    spans = [span for span in written.rendered.contents if span.message == index]
    if len(spans) != 1:
        raise TemplateError(f"the chat template writes message {index}, an answer, {len(spans)} times")
    span, tokens = spans[0], written.tokens
    # A special token that swallows white space begins within the message.
    ends = (n for n in range(start, len(tokens)) if tokens[n].control and tokens[n].end > span.end)
    end = next(ends, None)
    if end is None:
        raise TemplateError(f"the chat template writes no special token after message {index}, the answer")
    stopped, block = tokens[end].start, _block(messages, written.rendered, span)
    for place in (text[asked : block.start], text[block.end : stopped]):
        if place.strip():
            raise TemplateError(
                f"the chat template writes {place!r} between message {index}, the answer, and the prompt "
                "before it or the special token after it"
            )
    return _Answer(range(start, end + 1), (text[asked : span.start], text[span.end : stopped]))


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
