"""`experiments.inspect` shows a row as the student sees it: roles in colour, what carries loss underlined."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from orca_jax import cli
from orca_jax.data import prepared
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.layouts import ROLE_NAMES
from orca_jax.experiments import inspect
from orca_jax.experiments.inspect import Choice
from orca_jax.training.run import row_builder

PLACE = ("expert", 0, 0)


@pytest.fixture(scope="module")
def row(finished, mini):
    """A row builder and tokenizer of the finished run."""
    return row_builder(mini(), finished), tokenizers.load(finished / "tokenizer")


def printed(row, *, tokens, colour):
    console = Console(file=io.StringIO(), force_terminal=colour, width=200)
    inspect.show_row(console, *row, PLACE, tokens)
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


# --- Chosen traces and rows


def shown(mini, finished, choice, draw=(3, 0), dataset="", colour=False):
    console = Console(file=io.StringIO(), width=200, force_terminal=colour)
    chosen = {"collection": choice.collection, "task": choice.task, "find": choice.search}
    drawn = {"dataset": dataset, "count": draw[0], "seed": draw[1]}
    given = inspect.PROGRAM.options(config=mini(), workdir=finished, traces=True, **chosen, **drawn)
    inspect.run(given, console)
    return console.file.getvalue()


def test_traces_are_chosen_by_teacher_task_message_and_text(mini, finished):
    choice = Choice(teacher="expert", collection="puzzles", system=7, search=r"turn \w+")
    found = list(inspect.chosen_traces(mini(), finished, "", choice))
    every = [trace for name in ("apprentice", "expert") for trace in prepared.read(finished, name)]
    expected = [
        trace
        for trace in every
        if trace.teacher == "expert"
        and trace.system_message_id == 7
        and any(re.search(r"turn \w+", message.content) for message in trace.messages)
    ]
    assert expected
    assert [trace for trace, _ in found] == expected
    assert list(inspect.chosen_traces(mini(), finished, "expert", choice)) == found


def test_drawn_traces_are_printed_whole_and_the_same_again(mini, finished):
    choice = Choice(task=next(prepared.read(finished, "expert")).task)
    text = shown(mini, finished, choice, dataset="expert")
    assert text == shown(mini, finished, choice, dataset="expert")
    printed = [trace for trace in prepared.read(finished, "expert") if f"{trace.id} ─" in text]
    assert len(printed) == 3
    for trace in printed:
        assert trace.task == choice.task
        assert f"assistant: {trace.answer.splitlines()[0]}" in text
    assert text != shown(mini, finished, choice, draw=(3, 1), dataset="expert")


def test_what_was_searched_for_is_marked(mini, finished):
    plain, marked = (
        shown(mini, finished, Choice(search="answer"), colour=colour) for colour in (False, True)
    )
    assert "answer" in plain
    assert re.search(r"\x1b\[[0-9;]*7[0-9;]*manswer", marked)


def test_flags_choose(mini, finished):
    flagged = [entry for entry in prepared.flagged(finished, "apprentice") if "disagrees" in entry.flags]
    found = list(inspect.chosen_traces(mini(), finished, "apprentice", Choice(flag="disagrees")))
    assert [trace.id for trace, _ in found] == [entry.id for entry in flagged]
    assert flagged, "the apprentice errs"


def test_no_trace_is_an_error_that_names_the_choice(mini, finished):
    with pytest.raises(ValueError, match=r"no trace is chosen by .*collection='cot'"):
        shown(mini, finished, Choice(collection="cot"))


def test_rows_with_a_message_are_those_that_hold_it(row):
    rows, _ = row
    found = inspect.chosen_rows(rows, "expert", 0, Choice(system=8)).tolist()
    ids = rows.stores["expert"].columns["system_message_id"]
    plan = rows.plan_of("expert", 0)
    assert found == [number for number in range(plan.rows) if 8 in ids[plan.row(number)]]
    assert found


@pytest.mark.parametrize(
    ("choice", "message"),
    [(Choice(teacher="nobody"), "no row of 'expert' holds"), (Choice(search="x"), "give --traces too")],
)
def test_rows_that_cannot_be_chosen(row, choice, message):
    with pytest.raises(ValueError, match=message):
        inspect.chosen_rows(row[0], "expert", 0, choice)


def test_a_message_that_is_no_id_is_refused():
    with pytest.raises(ValueError, match="--system='seven' must be an id of the 16 messages, or -1"):
        inspect.run(cli.Options(system="seven"))
