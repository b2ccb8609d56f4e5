"""The argument after a config's path: `configs/mini.py:variant=full,runlocal`."""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict


class Arguments(NamedTuple):
    """`variant` names a version of the experiment; `runlocal` shrinks any version to seconds.

    `init` is the folder of released weights to start from, where a config takes one.
    """

    variant: str
    runlocal: bool
    init: str = ""


def parse(arg: str | None, *, variant: tuple[str, ...] = ("default",), init: bool = False) -> Arguments:
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


def shrink(config: ConfigDict) -> None:
    """Shrinks an experiment on files to seconds, with a tokenizer of its own; released weights stay."""
    config.data.update(tokenizer="", row_length=256)
    if not config.student.get("init"):
        config.student.update(vocab_size=512, hidden_size=32, intermediate_size=64, num_layers=2, head_dim=8)
    for stage in config.curriculum:
        stage.update(steps=2, warmup_steps=1)
    config.evaluation.update(max_tokens=8)
