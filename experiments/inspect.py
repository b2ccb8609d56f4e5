"""Prints packed rows as the student sees them: roles in colour, supervised tokens underlined, weights beside.

python -m experiments.inspect --config=configs/mini.py --workdir=runs/mini --dataset=expert --row=0
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.text import Text

from experiments import launch
from experiments.config import ExperimentConfig
from experiments.train import row_builder
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.layouts import ROLE_NAMES
from orca_jax.data.loader import RowBuilder
from orca_jax.data.tokenizer import Tokenizer

_DATASET = flags.DEFINE_string(
    "dataset", "", "A teacher's name, or `validation`; empty: the curriculum's first."
)
_EPOCH = flags.DEFINE_integer("epoch", 0, "Which epoch's packing plan.", lower_bound=0)
_ROW = flags.DEFINE_integer("row", 0, "Which row of the plan.", lower_bound=0)
_TOKENS = flags.DEFINE_bool("tokens", False, "One token a line, with its arrays, instead of running text.")

COLOURS = {"system": "magenta", "user": "cyan", "assistant": "green"}


def segments(rows: RowBuilder, dataset: str, epoch: int, row: int) -> list[dict[str, Any]]:
    """The examples of a row, with `system_message_id` and `teacher` from the store's columns.

    Raises:
      ValueError: the plan has no such data set or row.
    """
    plan = rows.plan_of(dataset, epoch)
    if row >= plan.rows:
        raise ValueError(
            f"data set {dataset!r} has rows 0 to {plan.rows - 1} in epoch {epoch}; asked for {row}"
        )
    store = rows.stores[dataset]
    columns = ("teacher", "collection", "task", "system_message_id")
    return [
        {**store[index], **{name: store.columns[name][index].item() for name in columns}}
        for index in plan.row(row)
    ]


def visible(piece: str) -> str:
    """A token for a person: SentencePiece's space and the newline byte as what they stand for."""
    return piece.replace("▁", " ").replace("<0x0A>", "⏎\n")


def running_text(example: dict[str, Any], tokenizer: Tokenizer) -> Text:
    """An example's tokens in their roles' colours; what carries loss is underlined."""
    text = Text()
    for token, weight, role in zip(example["tokens"], example["weights"], example["roles"], strict=True):
        style = COLOURS[ROLE_NAMES[role]] + (" underline" if weight > 0 else "")
        text.append(visible(tokenizer.token_text(int(token))), style)
    return text


def token_lines(rows: RowBuilder, dataset: str, epoch: int, row: int, tokenizer: Tokenizer) -> Text:
    """The row's arrays, a position a line."""
    arrays = rows.row(dataset, epoch, row)
    text = Text("position  segment  input            target           weight\n", "bold")
    for i in range(len(arrays.tokens)):
        names = [repr(tokenizer.token_text(int(ids[i])))[1:-1] for ids in (arrays.tokens, arrays.targets)]
        line = f"{arrays.positions[i]:8}  {arrays.segment_ids[i]:7}  {names[0]:15}  {names[1]:15}  "
        text.append(f"{line}{arrays.loss_weights[i]:g}\n", "green" if arrays.loss_weights[i] else "dim")
    return text


def show(
    console: Console, rows: RowBuilder, tokenizer: Tokenizer, place: tuple[str, int, int], tokens: bool
) -> None:
    """Prints the row at `place` (data set, epoch, row), as text or, with `tokens`, a position a line."""
    dataset, epoch, row = place
    found, arrays = segments(rows, *place), rows.row(*place)
    console.print(
        f"row {row} of {dataset}, epoch {epoch}: {len(found)} examples, "
        f"{int(np.count_nonzero(arrays.segment_ids))} of {rows.row_length} positions filled, "
        f"{int(arrays.loss_weights.sum())} supervised"
    )
    console.print(
        "colours: ", *(Text(role, colour) for role, colour in COLOURS.items()), Text("loss", "underline")
    )
    if tokens:
        console.print(token_lines(rows, *place, tokenizer))
        return
    for number, example in enumerate(found, 1):
        title = f"segment {number}: {example['id']}, system message {example['system_message_id']}"
        console.rule(title, align="left")
        console.print(running_text(example, tokenizer), soft_wrap=True, highlight=False)


def run(config: ExperimentConfig, workdir: Path) -> None:
    rows, tokenizer = row_builder(config, workdir), tokenizers.load(workdir / "tokenizer")
    dataset = _DATASET.value or next(iter(config.curriculum[0].datasets))
    show(Console(), rows, tokenizer, (dataset, _EPOCH.value, _ROW.value), _TOKENS.value)


if __name__ == "__main__":
    launch.main(run)
