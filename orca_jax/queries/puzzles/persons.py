"""Puzzles that follow persons: who tells the truth, who holds what, and where a walk leads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, NamedTuple

from orca_jax.queries.puzzles.base import (
    NUMBER_WORDS,
    Family,
    Pose,
    Slip,
    Solution,
    letter_of,
    lettered,
    listing,
    shuffled,
    words,
)


@dataclass(frozen=True)
class WebOfLies(Family):
    """A chain of persons, each saying of the one before that they lie or tell the truth.

    Difficulty d has d + 1 persons, so d = 4 is Big-Bench Hard's size. Each step repeats a claim and what is
    known of the person it is about, then says what follows.
    """

    name, difficulties = "web_of_lies", range(1, 8)
    simple_words = (("tells the truth", "is honest"), ("lies", "fibs"), ("So ", "That means "))
    NAMES = words(
        "Ada Amir Bela Bruno Celia Cyrus Dina Dorian Edith Emil Farah Felix Greta Hugo Inez Ivor Jonas Karin "
        "Leona Magnus Nadia Otto Petra Quentin Rosa Silas Tamar Ulric Vera Wanda Xenia Yusuf Zelda"
    )

    names: tuple[str, ...]
    first_is_honest: bool
    claims: tuple[bool, ...]  # whether person i + 1 says that person i tells the truth

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> WebOfLies:
        names = tuple(rng.sample(cls.NAMES, difficulty + 1))
        return cls(names, rng.random() < 0.5, tuple(rng.random() < 0.5 for _ in range(difficulty)))

    def _said(self) -> Iterator[tuple[str, str, str, bool]]:
        """Speaker, whom they speak of, the sentence, and whether it says that those are honest."""
        for speaker, subject, claim in zip(self.names[1:], self.names, self.claims):
            yield speaker, subject, f"{speaker} says {_verdict(subject, claim)}", claim

    def pose(self) -> Pose:
        sentences = [_verdict(self.names[0], self.first_is_honest), *(said for _, _, said, _ in self._said())]
        question = f"Question: {' '.join(sentences)} Does {self.names[-1]} tell the truth?"
        return Pose(self.name, question, question, ("Yes", "No"))

    def solve(self, slip: Slip) -> Solution:
        honest = self.first_is_honest
        steps = [_verdict(self.names[0], honest)]
        for speaker, subject, said, claim in self._said():
            premises = f"{said} {_verdict(subject, honest)}"
            honest = slip(claim == honest, claim != honest)
            steps.append(f"{premises} So {_verdict(speaker, honest)}")
        return Solution(tuple(steps), "Yes" if honest else "No")


def _verdict(name: str, honest: bool) -> str:
    return f"{name} tells the truth." if honest else f"{name} lies."


class Move(NamedTuple):
    """A turn, or `steps` in the direction faced or to a given side."""

    steps: int = 0
    side: str = ""
    turn: str = ""

    def __str__(self) -> str:
        distance = f"Take {self.steps} {'step' if self.steps == 1 else 'steps'}"
        return self.turn or f"{distance} {self.side}".rstrip()


@dataclass(frozen=True)
class Navigate(Family):
    """Does a list of moves lead back to the start?

    Difficulty d has d + 3 moves. There are two kinds, as in Big-Bench Hard: always facing forward, and
    with turns. Each step repeats a move and says where it leads: the place (x to the right, y forward, as
    seen at the start) and, with turns, the direction faced. Half of the lists lead back; the others are such
    lists with one move changed.
    """

    name, difficulties = "navigate", range(1, 7)
    simple_words = (
        ("Take", "Walk"),
        ("facing", "looking"),
        ("the start", "where we began"),
        ("Start", "Begin"),
    )
    QUESTION = "If you follow these instructions, do you return to the starting point?"
    FACINGS = ("north", "east", "south", "west")
    AXES: ClassVar = {"north": ("y", 1), "east": ("x", 1), "south": ("y", -1), "west": ("x", -1)}
    SIDES: ClassVar = {"forward": "north", "right": "east", "backward": "south", "left": "west"}
    TURNS: ClassVar = {"Turn right": 1, "Turn around": 2, "Turn left": 3}  # quarters of a circle

    turning: bool
    moves: tuple[Move, ...]

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> Navigate:
        count, turning, returns = difficulty + 3, rng.random() < 0.5, rng.random() < 0.5
        while True:
            moves = cls._turning(rng, count) if turning else cls._facing_forward(rng, count)
            if not returns:
                at = rng.randrange(count)
                others = [Move(turn=turn) for turn in cls.TURNS]
                if moves[at].steps:
                    others = [Move(steps, moves[at].side) for steps in range(1, 11)]
                moves[at] = rng.choice([move for move in others if move != moves[at]])
            drawn = cls(turning, tuple(moves))
            if (drawn.solve(Slip()).answer == "Yes") == returns:
                return drawn

    @staticmethod
    def _facing_forward(rng: Random, count: int) -> list[Move]:
        """Moves that lead back: pairs of opposite moves, some split in two, in random order."""
        moves: list[Move] = []
        for _ in range(rng.randint((count + 3) // 4, count // 2)):
            steps = rng.randint(3, 10)
            moves += [Move(steps, side) for side in rng.choice((("left", "right"), ("forward", "backward")))]
        while len(moves) < count:
            whole = moves.pop(rng.choice([index for index, move in enumerate(moves) if move.steps > 1]))
            first = rng.randint(1, whole.steps - 1)
            moves += [Move(first, whole.side), Move(whole.steps - first, whole.side)]
        return rng.sample(moves, count)

    @classmethod
    def _turning(cls, rng: Random, count: int) -> list[Move]:
        """Moves that lead back: as when facing forward, but turning first; spare turns come last."""
        while True:
            facing, moves = "north", list[Move]()
            for walk in cls._facing_forward(rng, rng.randint(2, count)):
                quarters = (cls.FACINGS.index(cls.SIDES[walk.side]) - cls.FACINGS.index(facing)) % 4
                moves += [Move(turn=turn) for turn, quarter in cls.TURNS.items() if quarter == quarters]
                moves.append(Move(steps=walk.steps))
                facing = cls.SIDES[walk.side]
            if len(moves) <= count:
                return moves + [Move(turn=rng.choice(tuple(cls.TURNS))) for _ in range(count - len(moves))]

    def pose(self) -> Pose:
        sentences = [self.QUESTION] + ([] if self.turning else ["Always face forward."])
        sentences += [f"{move}." for move in self.moves]
        question = f"{' '.join(sentences)}\nOptions:\n- Yes\n- No"
        return Pose(self.name, question, question, ("Yes", "No"))

    def solve(self, slip: Slip) -> Solution:
        facing, place, steps = "north", {"x": 0, "y": 0}, list[str]()
        for move in (None, *self.moves):  # first what holds before any move
            shown = {axis: f"{axis} = {at}" for axis, at in place.items()}
            if move and move.turn:
                right, *wrong = (
                    self.FACINGS[(self.FACINGS.index(facing) + quarters) % 4]
                    for quarters in (self.TURNS[move.turn], *self.TURNS.values())
                )
                facing = slip(right, *wrong)
            elif move:
                axis, sign = self.AXES[self.SIDES.get(move.side, facing)]
                before, far = place[axis], sign * move.steps
                place[axis] = slip(before + far, before - far, before + far + 1, before + far - 1)
                shown[axis] += f" {'+' if sign > 0 else '-'} {move.steps} = {place[axis]}"
            faced = f"facing {facing}, " if self.turning else ""
            steps.append(f"{move or 'Start'}: {faced}{', '.join(shown.values())}.")
        returns = not any(place.values())
        steps.append(f"x = {place['x']}, y = {place['y']} is {'' if returns else 'not '}the start.")
        return Solution(tuple(steps), "Yes" if returns else "No")


class Story(NamedTuple):
    """A story of swaps: its opening, what a person has, how two swap, and the question's opening.

    `holding` and `ending` are followed by a thing; `thing` completes it for the options.
    """

    opening: str
    holding: str
    middle: str
    swap: str
    ending: str
    thing: str
    things: tuple[str, ...]


COLORS = words("red orange yellow green blue purple pink white black brown")


@dataclass(frozen=True)
class TrackingShuffledObjects(Family):
    """Who holds what after a number of swaps?

    Difficulties 1, 2, 3: three persons and 2, 3, 4 swaps; 4: five persons, 5 swaps; 5: seven persons, 7.
    Difficulties 2, 4 and 5 are Big-Bench Hard's. Each step repeats a swap and lists what everybody holds.
    """

    name, difficulties = "tracking_shuffled_objects", range(1, 6)
    styles = ("restate", "changes", "pointer")
    simple_words = (
        ("Start:", "At first:"),
        (" swap:", " change places, so now:"),
        (", option", ", and that is"),
    )
    PERSONS = ("Alice", "Bob", "Claire", "Dave", "Eve", "Fred", "Gertrude")
    SIZES: ClassVar = {1: (3, 2), 2: (3, 3), 3: (3, 4), 4: (5, 5), 5: (7, 7)}  # by difficulty: persons, swaps
    STORIES = (
        Story(
            "are dancers at a square dance. At the start of a song, they each have a partner:",
            "is dancing with",
            "Throughout the song, the dancers often trade partners.",
            "switch partners",
            "At the end of the dance, {person} is dancing with",
            "{}",
            words("Lola Rodrigo Patrick Melissa Jamie Sam Karl Ophelia Izzi Helga"),
        ),
        Story(
            "are holding a white elephant gift exchange. At the start of the event, "
            "they are each holding a present of a different color:",
            "has a",
            "As the event progresses, pairs of people swap gifts.",
            "swap their gifts",
            "At the end of the event, {person} has the",
            "{} present",
            COLORS,
        ),
        Story(
            "are playing a game. At the start of the game, they are each holding a ball:",
            "has a",
            "As the game progresses, pairs of players trade balls.",
            "swap balls",
            "At the end of the game, {person} has the",
            "{} ball",
            COLORS,
        ),
        Story(
            "are friends and avid readers who occasionally trade books. At the start of the semester, "
            "they each buy one new book:",
            "gets",
            "As the semester proceeds, they start trading around the new books.",
            "swap books",
            "At the end of the semester, {person} has",
            "{}",
            words("Emma Dracula Ulysses Hamlet Walden Candide Middlemarch Persuasion Kim Ivanhoe"),
        ),
        Story(
            "are on the same team in a soccer match. At the start of the match, "
            "they are each assigned to a position:",
            "is playing",
            "As the game progresses, pairs of players occasionally swap positions.",
            "trade positions",
            "At the end of the match, {person} is playing",
            "{}",
            (*words("goalkeeper striker fullback benchwarmer"), "left winger", "right winger",
             "left midfielder", "right midfielder", "center midfielder", "cheerleader"),
        ),
    )  # fmt: skip

    story: Story
    held: tuple[str, ...]
    swaps: tuple[tuple[int, int], ...]  # pairs of persons' indices
    asked: int  # the person's index
    options: tuple[str, ...]

    @classmethod
    def draw(cls, rng: Random, difficulty: int) -> TrackingShuffledObjects:
        persons, count = cls.SIZES[difficulty]
        story = rng.choice(cls.STORIES)
        held = tuple(rng.sample(story.things, persons))
        pairs = (rng.sample(range(persons), 2) for _ in range(count))
        swaps = tuple((first, second) for first, second in pairs)
        return cls(story, held, swaps, rng.randrange(persons), shuffled(rng, held))

    def pose(self) -> Pose:
        story, count = self.story, len(self.held)
        start = listing([
            f"{person} {story.holding} {story.thing.format(held)}"
            for person, held in zip(self.PERSONS, self.held)
        ])  # fmt: skip
        adverbs = ["First", *["Then"] * (len(self.swaps) - 2), "Finally"]
        swaps = " ".join(
            f"{adverb}, {self.PERSONS[first]} and {self.PERSONS[second]} {story.swap}."
            for adverb, (first, second) in zip(adverbs, self.swaps)
        )
        ending = story.ending.format(person=self.PERSONS[self.asked])
        stem = f"{listing(self.PERSONS[:count])} {story.opening} {start}.\n{story.middle} {swaps} {ending}"
        options = [story.thing.format(option) for option in self.options]
        return lettered(f"{self.name}_{NUMBER_WORDS[count]}_objects", stem, options)

    def trace(self, style: str, slip: Slip) -> Solution:
        steps, found = tracked(style, self.PERSONS, self.held, self.swaps, self.asked, slip)
        label = letter_of(found, self.options)
        last = f"{self.PERSONS[self.asked]} has {found}, option {label}."
        solution = Solution((*steps, last), label)
        return self.forward(solution) if style == "changes" else solution


def tracked(
    style: str,
    persons: Sequence[str],
    held: tuple[str, ...],
    swaps: Sequence[tuple[int, int]],
    asked: int,
    slip: Slip,
) -> tuple[list[str], str]:
    """The steps by which things held are followed through swaps, and what the person asked for has."""

    def said(held: tuple[str, ...], *who: int) -> str:
        return ", ".join(f"{persons[one]} {held[one]}" for one in who or range(len(held)))

    if style == "pointer":  # who had at first what the person asked for has at the end
        steps = [f"{persons[asked]}."]
        for first, second in reversed(swaps):
            right = {first: second, second: first}.get(asked, asked)
            asked = slip(right, *(other for other in range(len(held)) if other != right))
            steps.append(f"{persons[first]}, {persons[second]}: {persons[asked]}.")
        return [*steps, f"{said(held, asked)}."], held[asked]
    steps = [f"Start: {said(held)}."] if style == "restate" else []
    for first, second in swaps:
        # The swap, then each wrong one: a neglected swap, or another pair's.
        pairs = [(first, second), (first, first)]
        others = [other for other in range(len(held)) if other not in (first, second)]
        pairs += [(one, other) for one in (first, second) for other in others]
        one, other = slip(*pairs)
        before, turned = held, {one: held[other], other: held[one]}
        held = tuple(turned.get(place, thing) for place, thing in enumerate(held))
        if style == "restate":
            steps.append(f"{persons[first]} and {persons[second]} swap: {said(held)}.")
        else:
            steps.append(f"{said(before, first, second)}: {said(held, first, second)}.")
    return steps, held[asked]
