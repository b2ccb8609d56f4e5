"""Two evaluations of the same items, paired: which is right more often, and by which steps.

    python -m experiments.evaluate compare FIRST SECOND --names answers explanations

FIRST and SECOND are directories with `items.jsonl`, as `experiments.evaluate` writes them.
"""

from __future__ import annotations

from orca_jax.experiments import launch, options

if __name__ == "__main__":
    launch.start("compare")  # before the imports below, which take seconds

from collections.abc import Sequence
from pathlib import Path

from orca_jax import files
from orca_jax.records import Item
from orca_jax.reporting import arms, cells


def compare(first: Path, second: Path, names: tuple[str, str]) -> str:
    """The paired tables of two evaluations as Markdown."""
    sides = [list(files.read_jsonl(side / "items.jsonl", Item)) for side in (first, second)]
    paired = arms.pair(*sides)
    parts = [arms.accuracy_table(paired, names, cells.puzzles_per_family(first)), cells.CAPTION]
    if any("steps" in item.extra for item in sides[0]):
        parts.append(arms.paired_step_table(paired, names))
    return "\n\n".join([*(part.strip() for part in parts), arms.paired_sentence(paired, names)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    given = options.parser("compare").parse_args(arguments)
    names = tuple(given.names)
    launch.checked(lambda: print(compare(given.first, given.second, names)))


if __name__ == "__main__":
    main()
