"""The argument after a config's path: `configs/mini.py:variant=full,runlocal`."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Arguments:
    """`variant` names a version of the experiment; `runlocal` shrinks any version to seconds."""

    variant: str
    runlocal: bool


def parse(arg: str | None, *, variant: tuple[str, ...]) -> Arguments:
    """Reads `variant=NAME,runlocal`; the first of `variant` is the default.

    Raises:
      ValueError: an argument or a variant is unknown.
    """
    chosen, runlocal = variant[0], False
    for part in filter(None, (arg or "").split(",")):
        name, _, value = part.partition("=")
        if name == "variant" and value in variant:
            chosen = value
        elif part == "runlocal":
            runlocal = True
        else:
            raise ValueError(
                f"unknown config argument {part!r}; known: runlocal, variant={'|'.join(variant)}"
            )
    return Arguments(chosen, runlocal)
