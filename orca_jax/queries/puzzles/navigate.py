"""Navigate: does a list of moves lead back to the start?

Difficulty d has d + 3 moves. There are two kinds, as in Big-Bench Hard: always facing forward, and
with turns. Each step repeats a move and says where it leads: the place (x to the right, y forward, as
seen at the start) and, with turns, the direction faced. Half of the lists lead back; the others are such
lists with one move changed.
"""

from __future__ import annotations

import dataclasses
import random

from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution

NAME = "navigate"
QUESTION = "If you follow these instructions, do you return to the starting point?"
FACINGS = ("north", "east", "south", "west")
VECTORS = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}
SIDES = {"forward": "north", "right": "east", "backward": "south", "left": "west"}
TURNS = {"Turn right": 1, "Turn around": 2, "Turn left": 3}


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """A turn, or `steps` in the direction faced or to a given side."""

    steps: int = 0
    side: str = ""
    turn: str = ""

    def __str__(self) -> str:
        if self.turn:
            return self.turn
        distance = f"Take {self.steps} {'step' if self.steps == 1 else 'steps'}"
        return f"{distance} {self.side}" if self.side else distance


@dataclasses.dataclass(frozen=True, slots=True)
class Instance:
    turning: bool
    moves: tuple[Move, ...]


def draw(rng: random.Random, difficulty: int) -> Instance:
    count, turning, returns = difficulty + 3, rng.random() < 0.5, rng.random() < 0.5
    while True:
        moves = _draw_turning(rng, count) if turning else _draw_facing_forward(rng, count)
        instance = Instance(turning, tuple(moves if returns else _spoiled(rng, moves)))
        if (solve(instance, Slip()).answer == "Yes") == returns:
            return instance


def _draw_facing_forward(rng: random.Random, count: int) -> list[Move]:
    """Moves that lead back: pairs of opposite moves, some split in two, in random order."""
    pairs = rng.randint((count + 3) // 4, count // 2)
    moves: list[Move] = []
    for _ in range(pairs):
        steps = rng.randint(3, 10)
        moves += [Move(steps, side) for side in rng.choice((("left", "right"), ("forward", "backward")))]
    while len(moves) < count:
        whole = moves.pop(rng.choice([index for index, move in enumerate(moves) if move.steps > 1]))
        first = rng.randint(1, whole.steps - 1)
        moves += [Move(first, whole.side), Move(whole.steps - first, whole.side)]
    return rng.sample(moves, count)


def _draw_turning(rng: random.Random, count: int) -> list[Move]:
    """Moves that lead back: as when facing forward, but turning first; spare turns come last."""
    while True:
        facing = "north"
        moves: list[Move] = []
        for walk in _draw_facing_forward(rng, rng.randint(2, count)):
            quarters = (FACINGS.index(SIDES[walk.side]) - FACINGS.index(facing)) % 4
            moves += [Move(turn=turn) for turn, quarter in TURNS.items() if quarter == quarters]
            moves.append(Move(steps=walk.steps))
            facing = SIDES[walk.side]
        if len(moves) <= count:
            return moves + [Move(turn=rng.choice(tuple(TURNS))) for _ in range(count - len(moves))]


def _spoiled(rng: random.Random, moves: list[Move]) -> list[Move]:
    """The moves with one of them changed."""
    at = rng.randrange(len(moves))
    others = [Move(turn=turn) for turn in TURNS]
    if moves[at].steps:
        others = [Move(steps, moves[at].side) for steps in range(1, 11)]
    return [*moves[:at], rng.choice([move for move in others if move != moves[at]]), *moves[at + 1 :]]


def pose(instance: Instance) -> Pose:
    sentences = [QUESTION] + ([] if instance.turning else ["Always face forward."])
    sentences += [f"{move}." for move in instance.moves]
    question = f"{' '.join(sentences)}\nOptions:\n- Yes\n- No"
    return Pose(NAME, question, question, ("Yes", "No"))


def solve(instance: Instance, slip: Slip) -> Solution:
    facing, place = "north", (0, 0)
    steps = [f"Start: {_state(instance, facing, place)}"]
    for move in instance.moves:
        if move.turn:
            facing = _turned(facing, move.turn, slip)
            steps.append(f"{move}: {_state(instance, facing, place)}")
        else:
            direction = SIDES.get(move.side, facing)
            sums, place = _walked(place, VECTORS[direction], move.steps, slip)
            steps.append(f"{move}: {_facing(instance, facing)}{sums}")
    returns = place == (0, 0)
    steps.append(f"x = {place[0]}, y = {place[1]} is {'the start.' if returns else 'not the start.'}")
    return Solution(tuple(steps), "Yes" if returns else "No")


def _turned(facing: str, turn: str, slip: Slip) -> str:
    before = FACINGS.index(facing)
    after = FACINGS[(before + TURNS[turn]) % 4]
    return slip(after, *(FACINGS[(before + quarter) % 4] for quarter in TURNS.values()))


def _walked(
    place: tuple[int, int], vector: tuple[int, int], steps: int, slip: Slip
) -> tuple[str, tuple[int, int]]:
    """The place reached, and how its two numbers were found."""
    words, reached = [], []
    for name, before, direction in zip("xy", place, vector):
        if direction == 0:
            words.append(f"{name} = {before}")
            reached.append(before)
            continue
        right = before + direction * steps
        after = slip(right, before - direction * steps, right + 1, right - 1)
        words.append(f"{name} = {before} {'+' if direction > 0 else '-'} {steps} = {after}")
        reached.append(after)
    return f"{', '.join(words)}.", (reached[0], reached[1])


def _facing(instance: Instance, facing: str) -> str:
    return f"facing {facing}, " if instance.turning else ""


def _state(instance: Instance, facing: str, place: tuple[int, int]) -> str:
    return f"{_facing(instance, facing)}x = {place[0]}, y = {place[1]}."


FAMILY = Family(
    name=NAME,
    difficulties=range(1, 7),
    draw=draw,
    pose=pose,
    solve=solve,
    simple_words=(
        ("Take", "Walk"),
        ("facing", "looking"),
        ("the start", "where we began"),
        ("Start", "Begin"),
    ),
)
