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


def sample(number, *, filter="none", **metrics):
    """A line of lm-eval's samples (lm_eval/evaluator.py of 4e7e0d4), shortened."""
    return {
        "doc_id": number, "doc": {"query": f"{number}?"}, "target": "(A)", "arguments": {},
        "resps": [["(A)"]], "filtered_resps": ["(A)"], "filter": filter, "metrics": list(metrics),
        "doc_hash": f"{number:064}", "prompt_hash": "", "target_hash": "", **metrics,
    }  # fmt: skip


@pytest.fixture
def samples(tmp_path):
    def written(name, rows):
        path = tmp_path / "out/model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return tmp_path / "out"

    return written


TIMED = "samples_bbh_zeroshot_snarks_2026-08-21T19-56-54.123456.jsonl"


def test_lm_evals_samples_are_items(samples):
    folder = samples(TIMED, [sample(number, exact_match=number % 2) for number in range(4)])
    items = replies.read_items(folder)
    assert [item.correct for item in items] == [False, True, False, True]
    assert {(item.benchmark, item.task, item.mode) for item in items} == {
        ("lm_eval", "bbh_zeroshot_snarks", "exact_match,none")
    }
    assert items[1].id == "1-00000000"
    assert replies.read_items(folder / "model" / TIMED) == items


def test_one_metric_under_one_filter_is_compared(samples):
    rows = [sample(0, filter=name, acc=1.0, acc_norm=0.0, brier=[0.2]) for name in ("strict", "loose")]
    folder = samples(TIMED, rows)
    with pytest.raises(BenchmarkError, match=r"acc,strict, acc_norm,strict, .*: name one by --metric"):
        replies.read_items(folder)
    with pytest.raises(BenchmarkError, match="acc,strict, acc,loose: name one by --metric"):
        replies.read_items(folder, "acc")
    assert [item.correct for item in replies.read_items(folder, "acc,loose")] == [True]
    assert [item.correct for item in replies.read_items(folder, "acc_norm,loose")] == [False]
    with pytest.raises(BenchmarkError, match=r"\.jsonl: no f1 in it"):
        replies.read_items(folder, "f1")
    with pytest.raises(
        BenchmarkError, match=r"\.jsonl:1: brier,strict is \[0.2\], neither 1 \(right\) nor 0"
    ):
        replies.read_items(folder, "brier,strict")


def test_what_is_no_sample_is_refused(samples, tmp_path):
    with pytest.raises(BenchmarkError, match=r"neither items\.jsonl nor lm-eval's samples_\*\.jsonl in it"):
        replies.read_items(tmp_path)
    folder = samples("samples_a.jsonl", [LINE])
    with pytest.raises(BenchmarkError, match=r"samples_a\.jsonl:1: no sample of lm-eval"):
        replies.read_items(folder)
    samples("samples_a.jsonl", [sample(0, acc=1)])
    samples("samples_a_2026-08-21T19-56-54.123456.jsonl", [sample(0, acc=1)])
    with pytest.raises(BenchmarkError, match=r"a is in .*samples_a\.jsonl too; name one of the two files"):
        replies.read_items(folder)
