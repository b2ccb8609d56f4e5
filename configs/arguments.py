"""The argument after a config's path: `configs/mini.py:variant=full,runlocal`."""

from __future__ import annotations

from typing import NamedTuple

from ml_collections import ConfigDict


class Arguments(NamedTuple):
    """`variant` names a version of the experiment; `runlocal` shrinks any version to seconds.

    `init` is the folder of released weights to start from and `data` where the data are, where a config
    takes them.
    """

    variant: str
    runlocal: bool
    init: str = ""
    data: str = ""


def parse(
    arg: str | None, *, variant: tuple[str, ...] = ("default",), init: bool = False, data: bool = False
) -> Arguments:
    """Reads `variant=NAME,init=FOLDER,data=PATH,runlocal`; the first of `variant` is the default.

    Raises:
      ValueError: an argument or a variant is unknown.
    """
    chosen, runlocal, paths = variant[0], False, dict[str, str]()
    taken = {name: of for name, of, takes in (("init", "FOLDER", init), ("data", "PATH", data)) if takes}
    for part in filter(None, (arg or "").split(",")):
        name, _, value = part.partition("=")
        if name == "variant" and value in variant:
            chosen = value
        elif name in taken and value:
            paths[name] = value
        elif part == "runlocal":
            runlocal = True
        else:
            known = ", ".join(["runlocal", *(f"{name}={of}" for name, of in taken.items())])
            known += f", variant={'|'.join(variant)}"
            raise ValueError(f"unknown config argument {part!r}; known: {known}")
    return Arguments(chosen, runlocal, **paths)


def shrink(config: ConfigDict) -> None:
    """Shrinks an experiment on files to seconds, with a tokenizer of its own; released weights stay."""
    config.data.update(tokenizer="", row_length=256)
    if not config.student.get("init"):
        config.student.update(vocab_size=512, hidden_size=32, intermediate_size=64, num_layers=2, head_dim=8)
    for stage in config.curriculum:
        stage.update(steps=2, warmup_steps=1)
    config.evaluation.update(max_tokens=8)
