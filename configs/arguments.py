"""The argument after a config's path: `configs/mini.py:variant=full,runlocal`."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Arguments:
    """`variant` names a version of the experiment; `runlocal` shrinks any version to seconds.

    `init` is the folder of released weights to start from, where a config takes one.
    """

    variant: str
    runlocal: bool
    init: str = ""


def parse(arg: str | None, *, variant: tuple[str, ...], init: bool = False) -> Arguments:
    """Reads `variant=NAME,init=FOLDER,runlocal`; the first of `variant` is the default.

    Raises:
      ValueError: an argument or a variant is unknown.
    """
    chosen, runlocal, weights = variant[0], False, ""
    for part in filter(None, (arg or "").split(",")):
        name, _, value = part.partition("=")
        if name == "variant" and value in variant:
            chosen = value
        elif init and name == "init" and value:
            weights = value
        elif part == "runlocal":
            runlocal = True
        else:
            known = f"runlocal, {'init=FOLDER, ' if init else ''}variant={'|'.join(variant)}"
            raise ValueError(f"unknown config argument {part!r}; known: {known}")
    return Arguments(chosen, runlocal, weights)
