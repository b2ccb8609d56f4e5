"""The argument after a config's path: `configs/mini.py:variant=full,runlocal`."""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict

# A student that trains in seconds.
TINY = dict(vocab_size=512, hidden_size=32, intermediate_size=64, num_layers=2, head_dim=8)


class Arguments(NamedTuple):
    """`variant` names a version of the experiment; `runlocal` shrinks any version to seconds.

    `init` is the released student to start from, `data` the trace file, where a config takes them.
    """

    variant: str
    runlocal: bool
    init: str = ""
    data: str = ""


def parse(
    arg: str | None, *, variant: tuple[str, ...] = ("default",), paths: tuple[str, ...] = ()
) -> Arguments:
    """Reads `variant=NAME,init=MODEL,data=FILE,runlocal`; the first of `variant` is the default.

    `paths` are the names of `Arguments` that the config takes beside `variant` and `runlocal`.

    Raises:
      ValueError: an argument or a variant is unknown.
    """
    chosen = Arguments(variant[0], False)
    for part in filter(None, (arg or "").split(",")):
        name, _, value = part.partition("=")
        if (name == "variant" and value in variant) or (name in paths and value):
            chosen = chosen._replace(**{name: value})
        elif part == "runlocal":
            chosen = chosen._replace(runlocal=True)
        else:
            known = ", ".join(
                ["runlocal", *(f"{path}=PATH" for path in paths), f"variant={'|'.join(variant)}"]
            )
            raise ValueError(f"unknown config argument {part!r}; known: {known}")
    return chosen


def shrink(config: ConfigDict) -> None:
    """Shrinks an experiment on files to seconds, with a tokenizer of its own; released weights stay."""
    config.data.update(tokenizer="", row_length=256)
    if not config.student.get("init"):
        config.student.update(TINY)
    for stage in config.curriculum:
        stage.update(steps=2, warmup_steps=1)
    config.evaluation.update(max_tokens=8)
