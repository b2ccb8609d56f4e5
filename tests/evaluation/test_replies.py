"""Replies made anywhere: read with file and line, and turned into questions."""

import json

import pytest

from orca_jax.evaluation import replies
from orca_jax.evaluation.benchmarks.base import BenchmarkError
from orca_jax.files import read_jsonl
from orca_jax.records import Item, Outcome

LINE = {"task": "snarks", "id": "snarks-0", "target": "(B)", "reply": "So the answer is (B)."}


@pytest.fixture
def write(tmp_path):
    def written(*rows, tail=""):
        path = tmp_path / "replies.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
        return path

    return written


def scored(path, mode, benchmark="bbh", files=""):
    """The items, read back."""
    replies.score(benchmark, mode, path, path.parent / "out", str(files))
    return list(read_jsonl(path.parent / "out/items.jsonl", Item))


@pytest.mark.parametrize(
    ("mode", "target", "reply", "task", "correct"),
    [
        ("answer_is", "(B)", "So the answer is (B).", "snarks", True),
        ("robust", "(B)", "So the answer is (b).", "snarks", True),
        ("robust", "B", "Option B", "snarks", True),
        ("robust", "yes", "Yes, it is.", "sports_understanding", True),
        ("robust", "] >", "]>", "dyck_languages", True),
        ("robust", "R", "(R)", "reasoning_about_colored_objects", True),
        ("orca", "(B)", "Based on (C)", "snarks", True),  # the first capital, faults included
        ("orca", "invalid", "B", "formal_fallacies", True),  # lettered in the files' order
        ("orca", "B", "G, then B", "logical_deduction_seven_objects", False),  # seven options
        ("orca", "B", "G, then B", "snarks", True),
    ],
)
def test_a_line_is_scored_in_the_mode_named(write, mode, target, reply, task, correct):
    path = write({"task": task, "id": "7", "target": target, "reply": reply})
    assert [item.correct for item in scored(path, mode)] == [correct]


def test_digits_are_truthfulqas_letters(write):
    path = write({"task": "truthfulqa_mc", "id": "7", "target": "2", "reply": "Option (2), not 3."})
    assert scored(path, "orca", "truthfulqa_mc")[0].correct


def test_an_empty_reply_is_unparsed_and_its_id_may_be_a_number(write):
    item = scored(write({**LINE, "id": 0, "reply": " "}), "answer_is")[0]
    assert (item.id, item.outcome, item.answer) == ("0", Outcome.EMPTY, None)


@pytest.mark.parametrize(
    ("rows", "tail", "message"),
    [
        ([LINE], '{"task": "snarks", "id', r"replies\.jsonl:2: not a JSON object"),
        ([LINE, {**LINE, "id": "1", "reply": None}], "", r":2: Line\.reply: expected str, got None"),
        ([{"task": "snarks", "target": "(B)", "reply": "B"}], "", r":1: Line lacks id"),
        ([LINE, LINE], "", r":2: snarks/snarks-0 is in .*replies\.jsonl:1 already"),
        ([{**LINE, "outcome": "fine"}], "", r":1: Line\.outcome: expected Outcome, got 'fine'"),
        ([LINE], "[1]\n", r":2: expected a JSON object, got \[1\]"),
        ([{**LINE, "id": True}], "", r":1: Line\.id: expected str, got True"),
        ([], "\n", "no reply in it"),
    ],
)
def test_a_torn_or_malformed_line_is_refused_by_file_and_line(write, rows, tail, message):
    with pytest.raises(BenchmarkError, match=message):
        scored(write(*rows, tail=tail), "robust")


@pytest.mark.parametrize(
    ("benchmark", "mode", "line", "message"),
    [
        ("mmlu", "orca", LINE, "unknown benchmark 'mmlu'; known: judged, puzzles, bbh"),
        ("gsm8k", "orca", LINE, "gsm8k has no mode 'orca'; its modes: orca_cot"),
        ("toxigen", "robust", LINE, "toxigen has no right answers"),
        ("bbh", "robust", {"task": "snarks", "id": "0", "reply": "B"}, r":1: no 'target'; give it, or the"),
        ("bbh", "robust", {**LINE, "task": "snark"}, r":1: BBH has no task 'snark'"),
        ("bbh", "orca", {**LINE, "target": "fig pear"}, r":1: mode orca reads letters, .*'fig pear'"),
    ],
)
def test_what_does_not_fit_is_refused(write, benchmark, mode, line, message):
    with pytest.raises(BenchmarkError, match=message):
        scored(write(line), mode, benchmark)


@pytest.fixture
def snarks(tmp_path):
    text = "Which?\nOptions:\n(A) He is kind\n(B) He is cruel"
    rows = [{"input": text, "target": "(B)"}] * 178
    (tmp_path / "snarks.json").write_text(json.dumps({"examples": rows}), encoding="utf-8")
    return tmp_path


def test_with_the_files_chance_is_known_and_options_are_recognised(write, snarks):
    path = write({**LINE, "id": "5", "reply": "The answer is he is cruel."})
    assert scored(path, "orca_cot", files=snarks)[0].answer == "B"
    scores = json.loads((path.parent / "out/scores.json").read_text(encoding="utf-8"))
    assert scores["tasks"]["snarks"]["chance"] == 0.5


def test_our_own_replies_are_read_with_the_files_alone(write, snarks):
    own = {"request": "h", "task": "snarks", "id": "snarks-5", "text": "(B)", "outcome": "length", "raw": {}}
    assert scored(write(own), "orca", files=snarks)[0].outcome == Outcome.LENGTH
    with pytest.raises(BenchmarkError, match=r":1: no 'target'; give it, or the benchmark's files"):
        scored(write(own), "orca")


def test_lines_that_do_not_fit_the_files_are_refused(write, snarks):
    with pytest.raises(BenchmarkError, match=r":1: target '\(A\)', but that of snarks/snarks-0 is 'B'"):
        scored(write({**LINE, "target": "(A)"}), "orca", files=snarks)
    with pytest.raises(BenchmarkError, match=r":1: the benchmark's files ask no snarks/200"):
        scored(write({**LINE, "id": "200"}), "orca", files=snarks)
