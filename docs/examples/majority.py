"""A family of puzzles: which of two letters is the more frequent one?"""

from __future__ import annotations

import random
from dataclasses import dataclass

from orca_jax import plugins
from orca_jax.queries.puzzles.base import Family, Pose, Slip, Solution


@dataclass(frozen=True)
class Majority(Family):
    """Difficulty k has 2k + 3 letters, of which none is equally frequent."""

    name, difficulties = "majority", range(1, 9)

    letters: str

    @classmethod
    def draw(cls, rng: random.Random, difficulty: int) -> Majority:
        """One of the given difficulty."""
        return cls("".join(rng.choice("ab") for _ in range(2 * difficulty + 3)))

    def pose(self) -> Pose:
        """The question; its text decides whether it is a test puzzle."""
        question = f"Which letter is more frequent in {' '.join(self.letters)}, a or b?"
        return Pose(self.name, question, question, ("a", "b"))

    def solve(self, slip: Slip) -> Solution:
        """Two counts, either of which an erring teacher may get wrong by one."""
        a, b = (slip(n, n + 1, n - 1) for n in map(self.letters.count, "ab"))
        answer = "a" if a > b else "b"
        return Solution(
            (f"a occurs {a} times, b {b} times.", f"The more frequent letter is {answer}."), answer
        )


plugins.puzzles(Majority)
