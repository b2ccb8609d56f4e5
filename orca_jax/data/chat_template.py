"""Chat templates (jinja) of Hugging Face tokenizers, as a layout: messages to pieces.

Templates are programs from strangers: they run in jinja's sandbox. What a message says is rendered with marks
around it and stand-ins where it spells a special token, so the special tokens of the rendered text are the
template's own. Where the marks change what a template writes, the conversation is refused.

The text is transformers' own. What the model has to say is all that the template writes after its prompt
(`add_generation_prompt`), up to the special token that ends the turn. It is checked for every answer that
carries loss that the prompt comes first, that there is such a token, and that the answer is written as it is
when it is the last. A template that asks for the date (`strftime_now`) gives other ids on other days.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from orca_jax.data.tokenizer import Special, Tokenizer
from orca_jax.records import Message


class LayoutError(ValueError):
    """A conversation does not fit a layout; the message says where."""


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Text, or one control token, of a role's turn.

    Attributes:
      loss: the weight of an answer's loss; None: it is no part of an answer.
      leads: a text that gets the tokenizer's leading space, if it has one.
    """

    text: str
    role: str
    loss: float | None = None
    control: bool = False
    leads: bool = False


class _GenerationBlocks(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` writes what is in it: answers are located without."""

    tags = {"generation"}  # noqa: RUF012  (jinja's own attribute)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    """A template in the environment that transformers gives to templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, jinja2.ext.loopcontrols]
    )
    # JSON as it is: jinja's own filter escapes it for HTML.
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals.update(
        raise_exception=raise_exception, strftime_now=lambda form: datetime.datetime.now().strftime(form)
    )
    return environment.from_string(template)


def text_of(
    template: str, contents: Sequence[tuple[str, str]], variables: Mapping[str, str], prompt: bool
) -> str:
    """What a template writes of (role, content) pairs.

    Args:
      variables: the special tokens' names (`bos_token`, ...).
      prompt: the header of the answer to come ends the text (`add_generation_prompt`).

    Raises:
      LayoutError: the template is no jinja, or refuses the conversation; says if for its system message.
    """
    messages = [{"role": role, "content": content} for role, content in contents]
    try:
        return _compiled(template).render(
            messages=messages, add_generation_prompt=prompt, tools=None, documents=None, **variables
        )
    except Exception as error:  # a stranger's program may raise anything
        reason = f"the chat template cannot be read or refuses the conversation: {error}"
        if contents[0][0] == "system":
            with contextlib.suppress(LayoutError):
                text_of(template, contents[1:], variables, prompt)
                reason += (
                    "; it takes no system message: leave it out, change the template to write one (as within "
                    "the first user's turn), or name another data.layout"
                )
        raise LayoutError(reason) from error


# Characters for private use: marks before and after what a role says, one after an answer, and stand-ins for
# the first characters of special tokens.
SAID = {"system": "\U0010fe00", "user": "\U0010fe01", "assistant": "\U0010fe02"}
ANSWERED = "\U0010fe03"
STAND_INS = range(0x10FE04, 0x10FF00)
_MARKS = re.compile(f"[{SAID['system']}-{ANSWERED}]")
_RESERVED = re.compile(f"[{SAID['system']}-{chr(STAND_INS[-1])}]")


def _first_difference(one: str, other: str) -> int:
    """The first character in which two texts differ; the end of the shorter where there is none."""
    unequal = (at for at, (left, right) in enumerate(zip(one, other)) if left != right)
    return next(unequal, min(len(one), len(other)))


class _Answer(NamedTuple):
    """The characters [start, end) that the model writes: an answer and the end of its turn."""

    start: int
    end: int
    weight: float


class _Marked:
    """A conversation with marks, rendered by a template as far as is wanted.

    Raises:
      LayoutError: the template fails, or writes something else with marks than without.
    """

    def __init__(self, messages: Sequence[Message], template: str, tokenizer: Tokenizer):
        self.messages, self.template, self.tokenizer = messages, template, tokenizer
        firsts = sorted({name[0] for name in tokenizer.control_ids})
        stand_ins = dict(zip(firsts, map(chr, STAND_INS)))
        unmarked = dict.fromkeys((*SAID.values(), ANSWERED), "")
        self.plain = str.maketrans(unmarked | {new: first for first, new in stand_ins.items()})
        spelled = re.compile(f"(?={tokenizer.special_pattern}).", re.DOTALL)
        self.contents: list[tuple[str, str]] = []
        for message in messages:
            if reserved := _RESERVED.search(message.content):
                raise LayoutError(
                    f"a message has the character U+{ord(reserved.group()):X}, which marks places here"
                )
            content = spelled.sub(lambda match: stand_ins[match.group()], message.content)
            # Templates trim white space, so the marks are within it; and look whether there is a content.
            if said := content.strip():
                before, _, after = content.partition(said)
                end = ANSWERED if message.role == "assistant" else SAID[message.role]
                content = f"{before}{SAID[message.role]}{said}{end}{after}"
            self.contents.append((message.role, content))
        prompt = messages[-1].role == "user"
        self.text = self.rendered(len(messages), prompt)
        found = self.text.translate(self.plain)
        text = text_of(template, [(m.role, m.content) for m in messages], tokenizer.special_names, prompt)
        if found != text:
            at = _first_difference(found, text)
            raise LayoutError(
                "the chat template depends on a message in a way that keeps it from being located: near "
                f"character {at}, {text[max(0, at - 20) : at + 20]!r}; change the message or the "
                "template, or name another data.layout"
            )

    def rendered(self, size: int, prompt: bool) -> str:
        """What the template writes of the first messages."""
        return text_of(self.template, self.contents[:size], self.tokenizer.special_names, prompt)

    def answer(self, index: int) -> _Answer:
        """What the model has to say for message `index`: all from its prompt to the end of turn."""
        prompt, last = self.rendered(index, prompt=True), index == len(self.messages) - 1
        alone = self.text if last else self.rendered(index + 1, prompt=False)
        # A prompt may go on into the answer, as if it opens its thinking: then the answer's mark is within.
        header, mark, said = alone.rpartition(SAID["assistant"])
        start = len(prompt) if alone.startswith(prompt) else len(prompt + mark)
        if not alone.startswith(prompt) and not (header + said).startswith(prompt):
            at = _first_difference(prompt, header + said)
            asked, told = (text[at : at + 30].translate(self.plain) for text in (prompt, header + said))
            raise LayoutError(
                f"the chat template's prompt for message {index} is not the start of what it writes with the "
                "answer, so what is met at inference would not be what was trained on: the prompt goes on "
                f"with {asked!r}, the conversation with {told!r}. If that is a system message, leave it out; "
                "if it is the start of thinking, begin the answer with it; or name another data.layout"
            )
        before = len(self.tokenizer.special_tokens(prompt))
        stop = next(iter(self.tokenizer.special_tokens(alone)[before:]), None)
        if stop is None or stop.start < start:
            raise LayoutError(
                f"the chat template writes no special token after message {index}, the answer, where a reply "
                "would end: have it write one (as eos_token), or name another data.layout"
            )
        wanted = 1 if self.messages[index].content.strip() else 0
        times = alone[start:].count(ANSWERED)
        if times != wanted:
            raise LayoutError(f"the chat template writes message {index}, an answer, {times} times")
        if alone[start : stop.start].count(ANSWERED) != wanted:
            raise LayoutError(
                f"the chat template writes {stop.name!r} between the prompt for message {index} and the "
                "answer, where a reply would end"
            )
        special = self.tokenizer.special_tokens(self.text)[before : before + 1]
        if not self.text.startswith(alone[: stop.start]) or [one[:2] for one in special] != [stop[:2]]:
            raise LayoutError(
                f"the chat template writes message {index}, an answer, otherwise once the conversation goes "
                "on (it may leave out its thinking), so what is met at inference would not be what was "
                "trained on; data.supervise='last' trains on each conversation's last answer"
            )
        return _Answer(start, special[0].end, self.messages[index].weight)


def pieces(messages: Sequence[Message], template: str, tokenizer: Tokenizer) -> list[Piece]:
    """The pieces of a conversation, or of a prompt, in a template.

    Raises:
      LayoutError: the template fails, or an answer that carries loss cannot be located; says why.
    """
    marked = _Marked(messages, template, tokenizer)
    text, answers = marked.text, list[_Answer]()
    for index, message in enumerate(messages):
        if message.role == "assistant":
            try:
                answers.append(marked.answer(index))
            except LayoutError:
                if message.weight and messages[-1].role == "assistant":
                    raise
    spans, position = list[tuple[Special, bool]](), 0  # a text has no name; the flag says whether it leads
    for special in [*tokenizer.special_tokens(text), Special("", len(text), len(text))]:
        cuts = [one.start for one in answers if position < one.start < special.start]
        for start, end in itertools.pairwise([position, *cuts, special.start]):
            leads = start == 0 or (start == position and tokenizer.leads_sections)
            spans.append((Special("", start, end), leads))
        spans.append((special, False))
        position = special.end
    found = list[Piece]()
    for (name, start, end), leads in spans:
        loss = next((one.weight for one in answers if one.start <= start and end <= one.end), None)
        # The role of the message to come; an answer's header is the user's.
        mark = _MARKS.search(text, start)
        role = "system" if mark and mark.group() == SAID["system"] else "user"
        if written := name or text[start:end].translate(marked.plain):
            found.append(Piece(written, role if loss is None else "assistant", loss, bool(name), leads))
    return found
