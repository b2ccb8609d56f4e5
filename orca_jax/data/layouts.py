"""Prompt layouts: how a conversation becomes text, control tokens and loss.

A layout is one function from messages to pieces. A conversation that ends with a user's turn ends with
the header of the answer to come, so a prompt is exactly the start of the sequence trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from orca_jax.data.tokenizer import BOS, EOS, PAD, Tokenizer
from orca_jax.records import Message


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Text, or one control token, of a role's turn. `supervised` pieces carry loss."""

    text: str
    role: str
    supervised: bool = False
    control: bool = False


class LayoutError(ValueError):
    """A conversation does not fit a layout; the message says where."""


Layout = Callable[[Sequence[Message]], list[Piece]]


def check_turns(messages: Sequence[Message]) -> None:
    """Raises LayoutError unless: an optional system message, then user and assistant in turn."""
    turns = [message.role for message in messages]
    spoken = turns[1:] if turns[:1] == ["system"] else turns
    expected = [("user", "assistant")[i % 2] for i in range(len(spoken))]
    if not spoken or spoken != expected:
        raise LayoutError(
            f"turns must be [system], user, assistant, user, ...; got {', '.join(turns) or 'nothing'}"
        )


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


LAYOUTS: dict[str, Layout] = {"orca": orca, "chatml": chatml}
CONTROL_TOKENS: dict[str, tuple[str, ...]] = {"orca": (PAD,), "chatml": (PAD, IM_START, IM_END)}
STOP_TOKENS: dict[str, str] = {"orca": EOS, "chatml": IM_END}


def joined(pieces: Sequence[Piece]) -> Iterator[Piece]:
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
    """Token ids int32 [n] and whether each carries loss, float32 [n]; roles as indices of ROLE_NAMES."""

    tokens: np.ndarray
    weights: np.ndarray
    roles: np.ndarray


ROLE_NAMES = ("system", "user", "assistant")


def encode(messages: Sequence[Message], layout: str, tokenizer: Tokenizer) -> Encoded:
    """Tokens of a conversation; the same ids at training and at inference.

    Raises:
      LayoutError: the turns do not alternate, or the layout is unknown.
      TokenizerError: the tokenizer lacks a control token of the layout.
    """
    if layout not in LAYOUTS:
        raise LayoutError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    check_turns(messages)
    ids: list[int] = []
    weights: list[float] = []
    roles: list[int] = []
    first = True
    for piece in joined(LAYOUTS[layout](messages)):
        if piece.control:
            new = [tokenizer.control_id(piece.text)]
        else:
            new = tokenizer.encode(piece.text, first=first)
            first = False
        ids += new
        weights += [float(piece.supervised)] * len(new)
        roles += [ROLE_NAMES.index(piece.role)] * len(new)
    return Encoded(np.array(ids, np.int32), np.array(weights, np.float32), np.array(roles, np.int8))
