"""Prompt layouts: how a conversation becomes text, control tokens and loss.

A layout is one function from messages to pieces. A conversation that ends with a user's turn ends with
the header of the answer to come, so a prompt is exactly the start of the sequence trained on.

The layout `template` is the chat template of a Hugging Face tokenizer, and the layout of a folder that has
one unless another is named. The others write no beginning of sequence for a tokenizer that has none, and none
behind the same token.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from orca_jax import hub, plugins, records, storage
from orca_jax.data import chat_template, tokenizer_files
from orca_jax.data.chat_template import LayoutError, Piece
from orca_jax.data.tokenizer import BOS, EOS, PAD, Tokenizer, TokenizerError, folder_files
from orca_jax.records import Message, RecordError

Layout = Callable[[Sequence[Message]], list[Piece]]


def orca(messages: Sequence[Message]) -> list[Piece]:
    """The paper's headers (Figs 7, 10, 13): `### System:`, `### Human:`, `### Assistant:`.

    An empty system message leaves its bare header. The headers are plain text, so a user can imitate
    them; beginning and end of sequence are control tokens, and cannot be imitated.
    """
    system = messages[0].content if messages and messages[0].role == "system" else ""
    pieces = [Piece(BOS, "system", control=True)]
    pieces.append(Piece(f"### System:\n{system}\n\n" if system else "### System:\n", "system"))
    for message in messages:
        if message.role == "user":
            pieces.append(Piece(f"### Human:\n{message.content}\n\n### Assistant:\n", "user"))
        elif message.role == "assistant":
            pieces.append(Piece(message.content, "assistant", message.weight))
            pieces.append(Piece(EOS, "assistant", message.weight, control=True))
            pieces.append(Piece("\n\n", "user"))
    return pieces[:-1] if messages and messages[-1].role == "assistant" else pieces


IM_START = "<|im_start|>"
IM_END = "<|im_end|>"


def chatml(messages: Sequence[Message]) -> list[Piece]:
    """ChatML: every turn between `<|im_start|>role` and `<|im_end|>`, both control tokens.

    The answer's `<|im_end|>` is its end of sequence and carries loss. A missing system message is
    written as an empty one, so that both give the same ids.
    """
    if messages and messages[0].role != "system":
        messages = [Message("system", ""), *messages]
    pieces = [Piece(BOS, "system", control=True)]
    for message in messages:
        loss = message.weight if message.role == "assistant" else None
        pieces.append(Piece(IM_START, message.role, control=True))
        pieces.append(Piece(f"{message.role}\n", message.role))
        pieces.append(Piece(message.content, message.role, loss))
        pieces.append(Piece(IM_END, message.role, loss, control=True))
        pieces.append(Piece("\n", message.role))
    if messages and messages[-1].role == "assistant":
        return pieces[:-1]
    return [*pieces, Piece(IM_START, "assistant", control=True), Piece("assistant\n", "assistant")]


def llama2(messages: Sequence[Message]) -> list[Piece]:
    """Llama 2 chat (arXiv 2307.09288): `[INST] <<SYS>>...<</SYS>>` around system message and user.

    Every exchange is a sequence of its own, with its beginning, its end and SentencePiece's leading space.
    An empty system message leaves no block. The answer stands between two spaces, which carry loss: a
    prompt that ended in a space would split the answer's first word. `[INST]` and `<<SYS>>` are plain
    text, so a user can imitate them.
    """
    system = messages[0].content if messages and messages[0].role == "system" else ""
    opening = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    pieces = [Piece(BOS, "system", control=True), Piece(f"[INST] {opening}", "system")]
    for message in messages:
        if message.role == "user":
            pieces.append(Piece(f"{message.content} [/INST]", "user"))
        elif message.role == "assistant":
            pieces.append(Piece(f" {message.content} ", "assistant", message.weight))
            pieces.append(Piece(EOS, "assistant", message.weight, control=True))
            pieces += [Piece(BOS, "user", control=True), Piece(" [INST] ", "user")]
    return pieces[:-2] if messages and messages[-1].role == "assistant" else pieces


VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions."
)


def vicuna(messages: Sequence[Message]) -> list[Piece]:
    """Vicuna v1.1: a system sentence, then `USER: ... ASSISTANT: ...` and the end of sequence.

    Without a system message, or with an empty one, the sentence is Vicuna's own. The space before the
    answer carries loss, as in `llama2`; the headers are plain text, and a user can imitate them.
    """
    system = messages[0].content if messages and messages[0].role == "system" else ""
    pieces = [Piece(BOS, "system", control=True), Piece(f"{system or VICUNA_SYSTEM} ", "system")]
    for message in messages:
        if message.role == "user":
            pieces.append(Piece(f"USER: {message.content} ASSISTANT:", "user"))
        elif message.role == "assistant":
            pieces.append(Piece(f" {message.content}", "assistant", message.weight))
            pieces.append(Piece(EOS, "assistant", message.weight, control=True))
    return pieces


def plain(messages: Sequence[Message]) -> list[Piece]:
    """Nothing but the turns, each question on lines of its own and each answer before an end of sequence.

    For small students, to whom headers would be most of a sequence. A missing system message, or an empty
    one, leaves nothing.
    """
    pieces = [Piece(BOS, "system", control=True)]
    for message in messages:
        if message.role == "assistant":
            pieces.append(Piece(message.content, "assistant", message.weight))
            pieces.append(Piece(EOS, "assistant", message.weight, control=True))
        elif message.role == "user" or message.content:
            pieces.append(Piece(f"{message.content}\n", message.role))
    return pieces


OWN: dict[str, Layout] = {one.__name__: one for one in (orca, chatml, llama2, vicuna, plain)}
LAYOUTS: Mapping[str, Layout] = ChainMap(plugins.LAYOUTS.entries, OWN)
TEMPLATE = "template"  # a Hugging Face tokenizer's own
PAPER = "orca"
CONTROL_TOKENS: Mapping[str, tuple[str, ...]] = ChainMap(
    plugins.CONTROL_TOKENS.entries,
    dict.fromkeys((*OWN, TEMPLATE), (PAD,)) | {"chatml": (PAD, IM_START, IM_END)},
)
ROLE_NAMES = ("system", "user", "assistant")


def default(tokenizer: str | os.PathLike[str]) -> str:
    """The layout of a tokenizer's folder, which may be in a bucket: its chat template; empty: it has none.

    Raises:
      TokenizerError: the folder's configuration cannot be read.
    """
    path = Path(storage.local(hub.tokenizer(str(tokenizer))))
    try:
        return TEMPLATE if tokenizer_files.chat_template(folder_files(path)) else ""
    except (ValueError, AttributeError) as error:
        raise TokenizerError(f"{path} has files of a tokenizer that cannot be read: {error!r}") from error


def check(layout: str, tokenizer: Tokenizer) -> None:
    """Whether a tokenizer can write a layout.

    Raises:
      LayoutError: the layout is unknown, or is `template` and the tokenizer has none, or marks turns with the
        tokenizer's beginning of sequence.
      TokenizerError: the tokenizer lacks a control token of the layout.
    """
    if layout not in CONTROL_TOKENS:
        raise LayoutError(f"unknown layout {layout!r}; known: {', '.join(CONTROL_TOKENS)}")
    if layout == TEMPLATE:
        if not tokenizer.chat_template:
            raise LayoutError(
                f"layout {TEMPLATE!r} is a Hugging Face tokenizer's chat template, and this tokenizer has "
                f"none; use one of {', '.join(LAYOUTS)}"
            )
        return
    for piece in LAYOUTS[layout]([Message("user", ""), Message("assistant", "")]):
        if not piece.control or piece.text == BOS:
            continue
        if tokenizer.control_id(piece.text) == tokenizer.bos_id and piece.text != EOS:
            raise LayoutError(
                f"layout {layout!r} marks turns with {piece.text!r}, this tokenizer's beginning of sequence, "
                f"which would stand there twice; use {TEMPLATE!r}, its chat template, or another layout"
            )


def pieces(messages: Sequence[Message], layout: str, tokenizer: Tokenizer) -> list[Piece]:
    """The pieces of a conversation as the tokenizer gets them, neighbouring texts of equal loss joined.

    Raises:
      LayoutError: the turns do not alternate, or the answers of a template cannot be located exactly.
    """
    try:
        records.check_turns(messages)
    except RecordError as error:
        raise LayoutError(str(error)) from error
    if layout == TEMPLATE:
        return list(joined(chat_template.pieces(messages, tokenizer.chat_template or "", tokenizer)))
    found, before, texts = list[Piece](), None, 0
    for piece in LAYOUTS[layout](messages):
        begins = piece.control and piece.text == BOS
        if begins and tokenizer.bos_id in (None, before):
            continue
        before = tokenizer.control_id(piece.text) if piece.control else None
        texts += not piece.control
        found.append(dataclasses.replace(piece, leads=not piece.control and texts == 1))
    return list(joined(found))


def joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Neighbouring texts of equal loss as one piece, so that each run is tokenised once."""
    for (control, _), run in itertools.groupby(pieces, key=lambda piece: (piece.control, piece.loss)):
        first, *others = run
        if control:
            yield from (first, *others)
        else:
            yield dataclasses.replace(first, text="".join(piece.text for piece in (first, *others)))


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids int32 [n] and the weight of each one's loss, float32 [n]; roles as indices of ROLE_NAMES."""

    tokens: np.ndarray
    weights: np.ndarray
    roles: np.ndarray


def encode(messages: Sequence[Message], layout: str, tokenizer: Tokenizer, supervise: str = "all") -> Encoded:
    """Tokens of a conversation; the same ids at training and at inference.

    `supervise`: "all" puts the loss on every answer, "last" on the last one, "everything" on prompts too;
    the ids are the same. An answer's loss is scaled by its message's weight.

    Raises:
      LayoutError, TokenizerError: as `check` and `pieces`.
    """
    return encode_all([messages], layout, tokenizer, supervise)[0]


def encode_all(
    conversations: Sequence[Sequence[Message]], layout: str, tokenizer: Tokenizer, supervise: str = "all"
) -> list[Encoded]:
    """`encode` of many conversations, faster than one by one; raises as it does."""
    check(layout, tokenizer)
    if supervise == "last":
        conversations = [_last_alone(messages) for messages in conversations]
    every = [pieces(messages, layout, tokenizer) for messages in conversations]
    texts = [one for part in every for one in part if not one.control]
    ids = {  # all texts that lead are tokenised in one call, and all others in another
        leads: iter(tokenizer.encode_all([one.text for one in texts if one.leads == leads], first=leads))
        for leads in (True, False)
    }
    found = []
    elsewhere = 1.0 if supervise == "everything" else 0.0
    for part in every:
        parts = [[tokenizer.control_id(one.text)] if one.control else next(ids[one.leads]) for one in part]
        lengths = [len(part) for part in parts]
        weights = np.array([elsewhere if one.loss is None else one.loss for one in part], np.float32)
        roles = np.array([ROLE_NAMES.index(one.role) for one in part], np.int8)
        tokens = np.array(list(itertools.chain.from_iterable(parts)), np.int32)
        found.append(Encoded(tokens, np.repeat(weights, lengths), np.repeat(roles, lengths)))
    return found


def _last_alone(messages: Sequence[Message]) -> list[Message]:
    """The messages with loss on the last answer only."""
    last = max((at for at, message in enumerate(messages) if message.role == "assistant"), default=0)
    return [
        dataclasses.replace(message, weight=0.0) if message.role == "assistant" and at != last else message
        for at, message in enumerate(messages)
    ]


PROBE = "\ufffc"  # an answer that no layout writes a part of


@functools.lru_cache(maxsize=16)
def _answer(layout: str, tokenizer: Tokenizer) -> tuple[str, tuple[str, str]]:
    """The token that ends an answer, and the text before and after it, seen on the shortest conversation."""
    check(layout, tokenizer)
    try:
        found = pieces([Message("user", "a"), Message("assistant", PROBE)], layout, tokenizer)
    except LayoutError:  # a chat template's prompt may open the thinking
        found = pieces([Message("user", "a"), Message("assistant", f"<think>\n{PROBE}")], layout, tokenizer)
    said, stop = (piece for piece in found if piece.loss is not None)
    before, _, after = said.text.partition(PROBE)
    return stop.text, (before, after)


def stop_ids(layout: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """What ends a reply: the layout's token; for a template its end of turn and the folder's own ends.

    Raises as `encode` does.
    """
    own = (tokenizer.control_id(_answer(layout, tokenizer)[0]),)
    return tuple(dict.fromkeys([*own, *tokenizer.eos_ids])) if layout == TEMPLATE else own


def answer_frame(layout: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """The text that a layout writes before and after an answer within what carries loss."""
    return _answer(layout, tokenizer)[1]
