"""Do the steps matter to a student? One step of its own right reply is edited, and it goes on from there.

The edit is a mistake of `base.Slip`, of which the oracles know what follows: a student whose answer is
the one that it leads to answers by what its steps say; one whose answer stays right does not read them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orca_jax.queries.puzzles.base import Puzzle, Slip
from orca_jax.queries.puzzles.oracles import right_lines
from orca_jax.queries.system_messages import Style
from orca_jax.records import Message, Reply

Answer = Callable[[Sequence[Sequence[Message]]], Sequence[Reply]]
GoOn = Callable[[Sequence[tuple[Sequence[Message], str]]], Sequence[Reply]]


class Edit(NamedTuple):
    """The lines of a reply up to an edited one, and the line that ends it if the edit is followed."""

    lines: tuple[str, ...]
    follows: str


class Counts(NamedTuple):
    """Of `asked` puzzles, those replied to rightly in every line, and what became of an edit in each."""

    asked: int
    right: int
    followed: int  # the answer is what the edit leads to
    unmoved: int  # the answer is the right one still
    other: int


def edit(puzzle: Puzzle, lines: Sequence[str], form: str, rng: random.Random) -> Edit | None:
    """A right reply's lines with one mistake that changes the answer; None: no mistake does.

    Args:
      lines: the reply's, which tell the solution in `form`, a style of the family.
    """
    counter = Slip()
    puzzle.solution(form, counter)
    for at in rng.sample(range(counter.decisions), counter.decisions):
        mistaken = puzzle.solution(form, Slip(at, rng))
        told = [*mistaken.steps, puzzle.instance.closing(mistaken.answer)]
        place = next((n for n, (one, other) in enumerate(zip(told, lines)) if one != other), len(told))
        if mistaken.answer != puzzle.target and place < len(mistaken.steps):
            return Edit(tuple(told[: place + 1]), told[-1])
    return None


def measure(
    puzzles: Sequence[Puzzle], system: Sequence[Message], answer: Answer, go_on: GoOn, *, seed: int = 0
) -> Counts:
    """Edits a step of each reply that is right in every line, its steps before its answer, and lets it go on.

    Args:
      system: what stands before each question.
      answer: the replies to conversations.
      go_on: what follows a text with which the reply to a conversation begins.
    """
    asked = [(*system, Message("user", puzzle.question)) for puzzle in puzzles]
    edited = []
    right = 0
    for puzzle, messages, reply in zip(puzzles, asked, answer(asked), strict=True):
        found = right_lines(puzzle, Style.STEPS, reply.text)
        right += found.whole
        rng = random.Random(f"{seed} {puzzle.id}")
        if found.whole and (one := edit(puzzle, found.lines, found.style, rng)):
            edited.append((puzzle, messages, one))
    texts = [(messages, "".join(f"{line}\n" for line in one.lines)) for _, messages, one in edited]
    followed = unmoved = 0
    for (puzzle, _, one), reply in zip(edited, go_on(texts), strict=True):
        last = reply.text.strip().rpartition("\n")[2].strip()
        followed += last == one.follows
        unmoved += last == puzzle.instance.closing(puzzle.target)
    return Counts(len(puzzles), right, followed, unmoved, len(edited) - followed - unmoved)
