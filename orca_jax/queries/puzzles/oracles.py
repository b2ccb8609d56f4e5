"""Procedural teachers: endpoints that know the puzzles and answer as the system message asks; their checker.

An expert writes full traces for all difficulties; an apprentice, in the place of the weaker teacher,
skips steps, errs now and then and only guesses beyond its reach. Lengths differ in the direction
that Orca reports (arXiv 2306.02707, Figure 9): the expert's answers are the shorter under the messages
that want a bare answer, and the longer ones under the others.

`check_steps` holds the steps of any reply against a puzzle's true ones; `right_lines` finds those before its
first wrong one, and `OracleTeacher.continued` goes on from there.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from orca_jax import artifacts, records
from orca_jax.queries import system_messages
from orca_jax.queries.puzzles.base import Puzzle, Solution
from orca_jax.queries.system_messages import Style

UNKNOWN_QUESTION = "Sorry, I can only answer the puzzles that I was given."
ALL_DIFFICULTIES = 1_000_000
ANSWER_FIRST = "The answer is {answer}. Here is why:"
_ANSWER_LINE = re.compile(r"(so )?the answer is\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True)
class Knobs:
    """How good a teacher is, in separate knobs.

    Attributes:
      brevity: the share, 0 to 1, of the steps before the last that it skips.
      reach: the greatest difficulty it can solve; beyond it, it guesses.
      error_rate: the share, 0 to 1, of puzzles within reach on which it makes one mistake.
      bare_reply: what it says where the answer alone is wanted.
      style: the form of its steps, see `base.Family.trace`; empty: each family's usual one.
      steps: whether they are the puzzle's `own`; a `placebo`: those of another puzzle of its difficulty; or a
        `filler`: a dot for each of their words. The answer is the puzzle's own.
    """

    brevity: float
    reach: int
    error_rate: float
    bare_reply: str = "{answer}"
    style: str = ""
    steps: str = "own"


EXPERT = Knobs(brevity=0.0, reach=ALL_DIFFICULTIES, error_rate=0.0)
APPRENTICE = Knobs(brevity=0.5, reach=2, error_rate=0.05, bare_reply="The answer is {answer}.")


class OracleTeacher:
    """An endpoint that answers the puzzles it was given; it refuses any other question.

    The same messages and sampling seed get the same reply; other seeds give other samples.
    """

    def __init__(self, name: str, puzzles: Iterable[Puzzle], knobs: Knobs, seed: int = 0):
        self.knobs = knobs
        # Without the later knobs where they have their usual values: replies are drawn by it, and stay.
        usual = {"style": "", "steps": "own"}
        told = {key: value for key, value in dataclasses.asdict(knobs).items() if usual.get(key) != value}
        self.identity = f"{name}-{artifacts.digest([told, seed])[:8]}"
        self._puzzles = {puzzle.question: puzzle for puzzle in puzzles}

    async def reply(self, messages: Sequence[records.Message], sampling: records.Sampling) -> records.Reply:
        """Answers the last user message. Outcomes: ok, length (cut at `max_tokens` words) or refused."""
        question = next((m.content for m in reversed(messages) if m.role == "user"), "")
        prompt_tokens = sum(len(message.content.split()) for message in messages)
        puzzle = self._puzzles.get(question)
        if puzzle is None:
            usage = records.Usage(prompt_tokens, len(UNKNOWN_QUESTION.split()))
            return records.Reply(records.Outcome.REFUSED, UNKNOWN_QUESTION, usage)
        rng = random.Random(repr((self.identity, tuple(messages), sampling.seed)))
        style = wanted_style(messages)
        text, limit = self._answer(puzzle, style, rng), sampling.max_tokens
        ends = [match.end() for match in re.finditer(r"\S+", text)]
        kept = text if len(ends) <= limit else text[: ends[limit - 1]] if limit > 0 else ""
        outcome = records.Outcome.OK if kept == text else records.Outcome.LENGTH
        return records.Reply(outcome, kept, records.Usage(prompt_tokens, len(kept.split())))

    def _answer(self, puzzle: Puzzle, style: Style, rng: random.Random) -> str:
        solution = puzzle.solution(self.knobs.style)
        if puzzle.difficulty > self.knobs.reach:
            answer = puzzle.guess(rng)
            solution = Solution((f"I think it is {answer}.",), answer)
        elif rng.random() < self.knobs.error_rate:
            solution = puzzle.mistaken(rng, self.knobs.style)
        if self.knobs.steps == "placebo":
            other = puzzle.instance.generate(rng, puzzle.difficulty)
            solution = solution._replace(steps=other.solution(self.knobs.style).steps)
        elif self.knobs.steps == "filler":
            dots = tuple(re.sub(r"\S+", ".", step) for step in solution.steps)
            solution = solution._replace(steps=dots)
        steps = [step for step in solution.steps[:-1] if rng.random() >= self.knobs.brevity]
        steps += solution.steps[-1:]
        solution = solution._replace(steps=tuple(steps))
        return "\n".join(reply_lines(puzzle, style, solution, self.knobs.bare_reply))

    def continued(self, puzzle: Puzzle, messages: Sequence[records.Message], written: str) -> Mended:
        """A reply that is right as it is; else its lines before the first wrong one, and the teacher's after.

        The teacher errs as in replies of its own: a mistake that it would have made in the lines that are
        there already is not made. The same arguments give the same lines.
        """
        style = wanted_style(messages)
        found = right_lines(puzzle, style, written, self.knobs.bare_reply, self.knobs.style)
        if found.whole:
            return Mended(written, found.kept, True)
        rng, lines = random.Random(repr((self.identity, tuple(messages), written))), found.lines
        if rng.random() < self.knobs.error_rate:
            mistaken = puzzle.mistaken(rng, found.style)
            erring = tuple(reply_lines(puzzle, style, mistaken, self.knobs.bare_reply))
            lines = erring if erring[: found.kept] == lines[: found.kept] else lines
        return Mended("\n".join(lines), found.kept, False)


class Mended(NamedTuple):
    """A reply that was gone on with after `kept` of its lines, or that was `right`."""

    text: str
    kept: int
    right: bool


def wanted_style(messages: Sequence[records.Message]) -> Style:
    """How the system message of a conversation wants it answered."""
    system = next((m.content for m in messages if m.role == "system"), None)
    message_id = system_messages.recognise(system)
    return Style.STEPS if message_id is None else system_messages.get(message_id).style


def reply_lines(puzzle: Puzzle, style: Style, solution: Solution, bare_reply: str = "{answer}") -> list[str]:
    """The lines in which a solution is told."""
    if style is Style.BARE:
        return bare_reply.format(answer=solution.answer).split("\n")
    steps = list(map(puzzle.instance.simple, solution.steps)) if style is Style.SIMPLE else solution.steps
    if style is Style.ANSWER_FIRST:
        return [ANSWER_FIRST.format(answer=solution.answer), *steps]
    return [*steps, puzzle.instance.closing(solution.answer)]


class RightLines(NamedTuple):
    """How far a reply is right: its first `kept` lines are the first of `lines`, the true solution's.

    `style` is the one of `base.STYLES` that the solution is written in; `whole`: it is right to its end.
    """

    kept: int
    lines: tuple[str, ...]
    style: str
    whole: bool


def right_lines(
    puzzle: Puzzle, style: Style, written: str, bare_reply: str = "{answer}", first: str = ""
) -> RightLines:
    """The lines of a reply before the first wrong one; empty lines and white space do not count.

    Of the styles in which the steps can be written, the one in which most lines are right counts; `first` and
    then the family's order decide where several are.
    """
    said = [" ".join(line.split()) for line in written.splitlines() if line.strip()]
    best = None
    for form in dict.fromkeys([first or puzzle.instance.styles[0], *puzzle.instance.styles]):
        lines = tuple(reply_lines(puzzle, style, puzzle.solution(form), bare_reply))
        pairs = enumerate(zip(lines, said))
        count = next((n for n, (one, other) in pairs if one != other), min(len(lines), len(said)))
        if best is None or count > best.kept:
            best = RightLines(count, lines, form, count == len(lines) == len(said))
    assert best, "a family has a style"
    return best


@dataclasses.dataclass(frozen=True, slots=True)
class StepScore:
    """How many true steps there are, how many steps a reply states, and how many of those are true.

    A stated step is correct when it is a true step, in plain or simple words, in its true order. Of the
    styles in which a family's steps can be written, the one of most correct steps counts.
    """

    expected: int
    stated: int
    correct: int

    @property
    def wrong(self) -> int:
        return self.stated - self.correct


def check_steps(puzzle: Puzzle, reply_text: str) -> StepScore:
    """Scores the steps of a reply: its lines that are not empty and do not give the answer.

    A reply of a single line is a bare answer and states no steps.
    """
    lines = [" ".join(line.split()) for line in reply_text.splitlines() if line.strip()]
    if lines and lines[-1] in map(puzzle.instance.closing, puzzle.choices):
        lines = ["", *lines[:-1]]  # the reply has an answer
    stated = [line for line in lines if line and not _ANSWER_LINE.match(line)] if len(lines) > 1 else []
    forms = [puzzle.solution(style).steps for style in puzzle.instance.styles]
    expected, correct = len(forms[0]), 0
    forms.insert(1, tuple(map(puzzle.instance.simple, forms[0])))
    for steps in forms:  # the length of the longest common subsequence
        row = [0] * (len(stated) + 1)
        for step in steps:
            above, row = row, [0]
            for index, line in enumerate(stated):
                row.append(above[index] + 1 if line == step else max(above[index + 1], row[index]))
        if row[-1] > correct:
            expected, correct = len(steps), row[-1]
    return StepScore(expected=expected, stated=len(stated), correct=correct)
