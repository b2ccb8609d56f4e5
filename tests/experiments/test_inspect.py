"""`experiments.inspect` shows a row as the student sees it: roles in colour, what carries loss underlined."""

import io

import numpy as np
import pytest
from rich.console import Console

from experiments import inspect
from experiments.train import row_builder
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.layouts import ROLE_NAMES

PLACE = ("expert", 0, 0)


@pytest.fixture(scope="module")
def row(finished, mini):
    """A row builder and tokenizer of the finished run."""
    return row_builder(mini(), finished), tokenizers.load(finished / "tokenizer")


def printed(row, *, tokens, colour):
    console = Console(file=io.StringIO(), force_terminal=colour, width=200)
    inspect.show(console, *row, PLACE, tokens)
    return console.file.getvalue()


def test_the_text_is_that_of_the_rows_examples(row):
    rows, _ = row
    text = printed(row, tokens=False, colour=False)
    examples = inspect.segments(rows, *PLACE)
    for example in examples:
        assert example["id"] in text
    assert text.count("### Assistant:") == len(examples)
    assert text.count("</s>") == len(examples)


def test_exactly_the_supervised_tokens_are_underlined_and_roles_coloured(row):
    rows, tokenizer = row
    example = inspect.segments(rows, *PLACE)[0]
    spans = inspect.running_text(example, tokenizer).spans
    underlined = [" underline" in str(span.style) for span in spans]
    assert underlined == (example["weights"] > 0).tolist()
    assert underlined[-1], "the end of sequence carries loss"
    colours = [str(span.style).split()[0] for span in spans]
    assert colours == [inspect.COLOURS[ROLE_NAMES[role]] for role in example["roles"]]


def test_a_terminal_gets_colours(row):
    assert "\x1b[" in printed(row, tokens=False, colour=True)


def test_tokens_are_printed_a_position_a_line(row):
    rows, _ = row
    lines = printed(row, tokens=True, colour=False).splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("position"))
    body = [line for line in lines[header + 1 :] if line.strip()]
    assert len(body) == rows.row_length
    weights = [float(line.split()[-1]) for line in body]
    assert np.array_equal(weights, rows.row(*PLACE).loss_weights)


def test_a_row_past_the_plan_is_refused(row):
    rows, _ = row
    with pytest.raises(ValueError, match=r"rows 0 to \d+ in epoch 0; asked for 999999"):
        inspect.segments(rows, "expert", 0, 999_999)
