"""A layout: every turn in brackets, the answer up to an end of sequence."""

from collections.abc import Sequence

from orca_jax import plugins
from orca_jax.data.chat_template import Piece
from orca_jax.data.tokenizer import BOS, EOS
from orca_jax.records import Message


def brackets(messages: Sequence[Message]) -> list[Piece]:
    """`[system: ...] [user: ...] [assistant: ...`; only answers and their ends carry loss."""
    pieces = [Piece(BOS, "system", control=True)]
    for message in messages:
        if message.role == "assistant":
            pieces.append(Piece(message.content, "assistant", message.weight))
            pieces.append(Piece(EOS, "assistant", message.weight, control=True))
        elif message.role == "user":
            pieces.append(Piece(f"[user: {message.content}] [assistant: ", "user"))
        elif message.content:
            pieces.append(Piece(f"[system: {message.content}] ", "system"))
    return pieces


plugins.layout("brackets", brackets)
