"""Chat templates (jinja) of Hugging Face tokenizers, with the place of every message in what they write.

Templates are programs from strangers: they run in jinja's sandbox. A template is rendered once with the
messages and once with a placeholder for each; where the second, filled in, is not exactly the first, the
template's use of a message is not understood and the conversation is refused rather than guessed at.
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


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


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
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
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
    held = [(m.role, _placeholder(i, m)) for i, m in enumerate(messages)]
    rendered = _filled(text_of(template, held, variables, prompt, mark=True), contents)
    if rendered.text != text:
        raise TemplateError(
            "the chat template changes a message otherwise than by trimming it, or writes something else "
            f"for its content: near {_difference(rendered.text, text)}"
        )
    return rendered


def _placeholder(index: int, message: Message) -> str:
    """What stands for a message. An empty question or system message stands for itself: templates ask."""
    if message.role != "assistant" and not message.content.strip():
        return message.content
    return f"{PAD}{START}{index}{END}{PAD}"


_PLACES = re.compile(f"({PAD}?){START}([0-9]+){END}({PAD}?)|{OPEN}|{CLOSE}")


def _filled(marked: str, contents: Sequence[str]) -> Rendered:
    """The text with contents for placeholders, trimmed where the placeholder's white space was."""
    parts: list[str] = []
    spans: list[Span] = []
    blocks: list[Span] = []
    length = opened = 0
    for part in _parts(marked):
        if isinstance(part, str):
            parts.append(part)
            length += len(part)
        elif part.group() == OPEN:
            opened = length
        elif part.group() == CLOSE:
            blocks.append(Span(opened, length, len(blocks)))
        else:
            content = _trimmed(contents[int(part[2])], left=not part[1], right=not part[3])
            parts.append(content)
            spans.append(Span(length, length + len(content), int(part[2])))
            length += len(content)
    return Rendered("".join(parts), tuple(spans), tuple(blocks))


def _parts(marked: str) -> Iterator[str | re.Match[str]]:
    """Literal texts and marks, in order."""
    position = 0
    for found in _PLACES.finditer(marked):
        yield marked[position : found.start()]
        yield found
        position = found.end()
    yield marked[position:]


def _trimmed(content: str, *, left: bool, right: bool) -> str:
    content = content.lstrip() if left else content
    return content.rstrip() if right else content


def _difference(filled: str, text: str) -> str:
    """Where two texts part, for an error message."""
    at = next((i for i, (a, b) in enumerate(zip(filled, text)) if a != b), min(len(filled), len(text)))
    return f"character {at}, {text[max(0, at - 20) : at + 20]!r}"
