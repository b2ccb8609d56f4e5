"""Prompt layouts: how a conversation becomes text, control tokens and loss.

A layout is one function from messages to pieces. A conversation that ends with a user's turn ends with
the header of the answer to come, so a prompt is exactly the start of the sequence trained on.

The layout `template` is no such function: it is the chat template of a Hugging Face tokenizer, and the layout
of a folder that has one unless another is named. The others write no beginning of sequence for a tokenizer
that has none, and none behind the same token.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from orca_jax import records, storage
from orca_jax.data import chat_template, hf_tokenizer
from orca_jax.data.chat_template import LayoutError
from orca_jax.data.hf_tokenizer import HuggingFaceTokenizer
from orca_jax.data.tokenizer import BOS, EOS, PAD, TokenizerLike, is_hugging_face
from orca_jax.records import Message, RecordError


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Text, or one control token, of a role's turn. `supervised` pieces carry loss."""

    text: str
    role: str
    supervised: bool = False
    control: bool = False


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
            pieces.append(Piece(message.content, "assistant", supervised=True))
            pieces.append(Piece(EOS, "assistant", supervised=True, control=True))
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
        spoken = message.role == "assistant"
        pieces.append(Piece(IM_START, message.role, control=True))
        pieces.append(Piece(f"{message.role}\n", message.role))
        pieces.append(Piece(message.content, message.role, supervised=spoken))
        pieces.append(Piece(IM_END, message.role, supervised=spoken, control=True))
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
            pieces.append(Piece(f" {message.content} ", "assistant", supervised=True))
            pieces.append(Piece(EOS, "assistant", supervised=True, control=True))
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
            pieces.append(Piece(f" {message.content}", "assistant", supervised=True))
            pieces.append(Piece(EOS, "assistant", supervised=True, control=True))
    return pieces


LAYOUTS: dict[str, Layout] = {"orca": orca, "chatml": chatml, "llama2": llama2, "vicuna": vicuna}
TEMPLATE = "template"  # a Hugging Face tokenizer's own
PAPER = "orca"
CONTROL_TOKENS: dict[str, tuple[str, ...]] = {
    "orca": (PAD,),
    "chatml": (PAD, IM_START, IM_END),
    "llama2": (PAD,),
    "vicuna": (PAD,),
    TEMPLATE: (PAD,),
}
STOP_TOKENS: dict[str, str] = {"orca": EOS, "chatml": IM_END, "llama2": EOS, "vicuna": EOS}
# What a layout writes around an answer within its supervised text: a reply begins and ends with it too.
ANSWER_FRAMES: dict[str, tuple[str, str]] = {
    "orca": ("", ""),
    "chatml": ("", ""),
    "llama2": (" ", " "),
    "vicuna": (" ", ""),
}


def default(tokenizer: str | os.PathLike[str]) -> str:
    """The layout of a tokenizer's folder, which may be in a bucket: its chat template; empty: it has none."""
    path = Path(storage.local(str(tokenizer)))
    return TEMPLATE if is_hugging_face(path) and hf_tokenizer.has_chat_template(path) else ""


def check(layout: str, tokenizer: TokenizerLike, supervise: str = "all") -> None:
    """Whether a tokenizer can write a layout.

    Raises:
      LayoutError: `supervise` or the layout is unknown, or the layout is `template` and the tokenizer has
        none, or marks turns with the tokenizer's beginning of sequence.
      TokenizerError: the tokenizer lacks a control token of the layout.
    """
    if supervise not in SUPERVISE:
        raise LayoutError(f"unknown supervise={supervise!r}; known: {', '.join(SUPERVISE)}")
    if layout == TEMPLATE:
        _templated(tokenizer)
        return
    if layout not in LAYOUTS:
        raise LayoutError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}, {TEMPLATE}")
    for token in (*CONTROL_TOKENS[layout], STOP_TOKENS[layout]):
        if token != PAD and tokenizer.control_id(token) == tokenizer.bos_id and token != EOS:
            raise LayoutError(
                f"layout {layout!r} marks turns with {token!r}, this tokenizer's beginning of sequence, "
                f"which would stand there twice; use {TEMPLATE!r}, its chat template, or another layout"
            )


def _begun(pieces: Iterable[Piece], tokenizer: TokenizerLike) -> Iterator[Piece]:
    """The pieces without a beginning of sequence that the tokenizer lacks, or that stands there already."""
    bos, before = tokenizer.bos_id, None
    for piece in pieces:
        begins = piece.control and piece.text == BOS
        if begins and bos in (None, before):
            continue
        before = (bos if begins else tokenizer.control_id(piece.text)) if piece.control else None
        yield piece


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbouring texts of equal supervision as one piece, so that each run is tokenised once."""
    held: Piece | None = None
    for piece in pieces:
        if held and not (held.control or piece.control) and held.supervised == piece.supervised:
            held = dataclasses.replace(held, text=held.text + piece.text)
            continue
        if held:
            yield held
        held = piece
    if held:
        yield held


@dataclasses.dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids int32 [n] and the weight of each one's loss, float32 [n]; roles as indices of ROLE_NAMES."""

    tokens: np.ndarray
    weights: np.ndarray
    roles: np.ndarray


ROLE_NAMES = ("system", "user", "assistant")
SUPERVISE = ("all", "last", "everything")


def encode(
    messages: Sequence[Message], layout: str, tokenizer: TokenizerLike, supervise: str = "all"
) -> Encoded:
    """Tokens of a conversation; the same ids at training and at inference.

    `supervise`: "all" puts the loss on every answer, "last" on the last one, "everything" on prompts too;
    the ids are the same. An answer's loss is scaled by its message's weight.

    Raises:
      LayoutError, TokenizerError: as `check`; or the turns do not alternate, `supervise` is unknown, or the
        answers of a template cannot be located exactly.
    """
    return encode_all([messages], layout, tokenizer, supervise)[0]


def encode_all(
    conversations: Sequence[Sequence[Message]], layout: str, tokenizer: TokenizerLike, supervise: str = "all"
) -> list[Encoded]:
    """`encode` of many conversations, faster than one by one; raises as it does."""
    check(layout, tokenizer, supervise)
    try:
        for messages in conversations:
            records.check_turns(messages)
    except RecordError as error:
        raise LayoutError(str(error)) from error
    if layout == TEMPLATE:
        chats = [chat_template.encode(messages, _templated(tokenizer)) for messages in conversations]
        encoded = [
            Encoded(
                np.array(chat.ids, np.int32),
                np.array(chat.supervised, np.float32),
                np.array([ROLE_NAMES.index(role) for role in chat.roles], np.int8),
            )
            for chat in chats
        ]
    else:
        encoded = _encode_pieces([LAYOUTS[layout](messages) for messages in conversations], tokenizer)
    found = []
    for one, messages in zip(encoded, conversations):
        begins = np.diff(one.weights, prepend=0.0) > 0  # where answers do: runs of ones
        weights = one.weights.copy()
        if supervise == "last" and begins.any():
            weights[: np.flatnonzero(begins)[-1]] = 0.0
        elif supervise == "everything":
            weights[:] = 1.0
        scales = [message.weight for message in messages if message.role == "assistant"]
        if any(scale != 1 for scale in scales):
            of_answers = np.array([1.0, *scales], np.float32)[np.cumsum(begins)]
            weights = (weights * np.where(one.weights > 0, of_answers, 1)).astype(np.float32)
        found.append(dataclasses.replace(one, weights=weights))
    return found


def _encode_pieces(conversations: Iterable[Iterable[Piece]], tokenizer: TokenizerLike) -> list[Encoded]:
    """Of each conversation's pieces; all first texts are tokenised in one call, and all others in another."""
    every = [list(joined(_begun(pieces, tokenizer))) for pieces in conversations]
    texts = [[piece.text for piece in pieces if not piece.control] for pieces in every]
    first = iter(tokenizer.encode_all([text for part in texts for text in part[:1]], first=True))
    others = iter(tokenizer.encode_all([text for part in texts for text in part[1:]], first=False))
    found = []
    for pieces in every:
        ids = itertools.chain(itertools.islice(first, 1), others)
        parts = [[tokenizer.control_id(piece.text)] if piece.control else next(ids) for piece in pieces]
        lengths = [len(part) for part in parts]
        weights = np.array([piece.supervised for piece in pieces], np.float32)
        roles = np.array([ROLE_NAMES.index(piece.role) for piece in pieces], np.int8)
        tokens = np.array(list(itertools.chain.from_iterable(parts)), np.int32)
        found.append(Encoded(tokens, np.repeat(weights, lengths), np.repeat(roles, lengths)))
    return found


def stop_ids(layout: str, tokenizer: TokenizerLike) -> tuple[int, ...]:
    """What ends a reply: the layout's token; for a template its end of turn and the folder's own ends.

    Raises as `check` does.
    """
    check(layout, tokenizer)
    if layout == TEMPLATE:
        templated = _templated(tokenizer)
        return tuple(dict.fromkeys([chat_template.probe(templated).stop_id, *templated.eos_ids]))
    return (tokenizer.control_id(STOP_TOKENS[layout]),)


def answer_frame(layout: str, tokenizer: TokenizerLike) -> tuple[str, str]:
    """The text that a layout writes before and after an answer."""
    return chat_template.probe(_templated(tokenizer)).frame if layout == TEMPLATE else ANSWER_FRAMES[layout]


def _templated(tokenizer: TokenizerLike) -> HuggingFaceTokenizer:
    """Raises LayoutError for a tokenizer without a chat template."""
    if isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.chat_template:
        return tokenizer
    raise LayoutError(
        f"layout {TEMPLATE!r} is a Hugging Face tokenizer's chat template, and this tokenizer has none; "
        f"use one of {', '.join(LAYOUTS)}"
    )
