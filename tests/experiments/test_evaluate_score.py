"""Replies made anywhere, scored by the program: its files, what it prints, and what it refuses."""

import json
import subprocess
import sys

import pytest

from orca_jax.evaluation.benchmarks import base
from orca_jax.evaluation.benchmarks.registry import show
from orca_jax.evaluation.replies import score
from orca_jax.experiments import evaluate
from orca_jax.files import read_jsonl
from orca_jax.records import Item

TAIL = "So the answer is "


def call(*arguments):
    """`evaluate score` in this process."""
    evaluate.PROGRAM.start(["score", *arguments])
    evaluate.main()


def lines(count=4, **changes):
    rows = [
        {"task": task, "id": str(i), "target": "(B)", "reply": f"Hm. {TAIL}({'AB'[i % 2]})."}
        for task in ("snarks", "ruin_names")
        for i in range(count)
    ]
    return "".join(json.dumps({**row, **changes}) + "\n" for row in rows)


@pytest.fixture
def replies(tmp_path):
    path = tmp_path / "replies.jsonl"
    path.write_text(lines() + json.dumps({"task": "snarks", "id": "x", "target": "(A)", "reply": "?"}) + "\n")
    return path


def run(*arguments):
    """The program's status, and what it says."""
    command = [sys.executable, "-m", "experiments.evaluate", "score", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.proof
def test_the_program_needs_neither_config_nor_workdir(replies, tmp_path):
    out = tmp_path / "out"
    status, said = run("--benchmark=bbh", "--mode=answer_is", f"--input={replies}", f"--out={out}")
    assert status == 0, said
    assert "mode answer_is" in said
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["mode"] == "answer_is"
    assert {"n": 5, "accuracy": 0.4, "unparsed": 0.2}.items() <= scores["tasks"]["snarks"].items()
    assert scores["tasks"]["snarks"]["stderr"] == pytest.approx((0.4 * 0.6 / 5) ** 0.5)
    assert (scores["macro"], scores["micro"]) == pytest.approx((0.45, 4 / 9))
    assert scores["groups"]["paper23"]["accuracy"] == pytest.approx(0.45)
    items = list(read_jsonl(out / "items.jsonl", Item))
    assert [item.correct for item in items] == [False, True, False, True] * 2 + [False]


def test_torn_replies_are_refused_and_nothing_is_written(replies, tmp_path, capsys):
    replies.write_text(lines()[:-20])
    with pytest.raises(SystemExit) as ended:
        call("--benchmark=bbh", "--mode=answer_is", f"--input={replies}", f"--out={tmp_path / 'out'}")
    assert ended.value.code == 1
    assert "replies.jsonl:8: not a JSON object" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_mode_is_asked_for(replies, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call("--benchmark=bbh", f"--input={replies}", f"--out={tmp_path}")
    assert "give --mode, one of orca, orca_cot" in capsys.readouterr().err


def test_reviews_are_printed_in_per_cent_with_one_decimal(tmp_path, capsys):
    path = tmp_path / "reviews.jsonl"
    path.write_text('{"question_id": 1, "score": [9.0, 8.5]}\n{"question_id": 2, "text": "9 8\\nSo."}\n')
    call("--benchmark=judged", f"--input={path}", f"--out={tmp_path}")
    assert "candidate over reference, reference_first: 91.7 %" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores["per_cent"]["reference_first"] == pytest.approx(100 * 16.5 / 18)


STEPS = "Half of 48 is 24 and 48 + 24 = 72."
DATE, COUNT, LIES = "date_understanding", "object_counting", "web_of_lies"


@pytest.mark.parametrize("mode", ["orca_cot", "robust"])
@pytest.mark.parametrize(
    ("task", "target", "reply", "answer"),
    [
        ("gsm8k", "72", f"{STEPS} The answer is 72 clips.", "72"),
        ("gsm8k", "18", "She earns 9 * 2. The answer is $18.00.", "18"),
        ("gsm8k", "-3", "The answer is \u22123 degrees.", "-3"),
        ("gsm8k", "72", "So she has 3 * 24 = 72 clips.", "72"),
        ("gsm8k", "72", "The answer is 72 (48 in April and 24 in May).", "72"),
        ("gsm8k", "1234", r"$\boxed{1{,}234\text{ clips}}$", "1234"),
        (DATE, "(B)", "One week back.\n\n**Answer**: B", "B"),
        (DATE, "(B)", "One week back.\n\\boxed{\\text{B}}", "B"),
        (DATE, "(B)", "The answer is neither (A) nor (B).", None),
        (DATE, "(B)", "<think>\nMaybe the answer is (A)? No.\n</think>\n\nB", "B"),
        (DATE, "(B)", "B. 03/09/2020\n\nThe answer isn't (A).", "B"),
        (COUNT, "8", "2 + 1 + 5 = 8. So I have 8 vegetables.", "8"),
        (COUNT, "8", "The answer is eight.", "8"),
        ("multistep_arithmetic_two", "24", "(-4 * -6) = 24, so the answer is 24, which is positive.", "24"),
        (LIES, "No", "The answer is \\boxed{No}.", "No"),
        (LIES, "No", "So Ana does not tell the truth.", "No"),
        ("sports_understanding", "no", "The sentence is not plausible.", "no"),
        ("formal_fallacies", "invalid", "The argument is not valid.", "invalid"),
        ("boolean_expressions", "True", "The answer is not False, but True.", "True"),
        ("dyck_languages", "] >", "The answer is `] >`, which closes all.", "] >"),
    ],
)
def test_replies_are_read_whatever_their_form(tmp_path, mode, task, target, reply, answer):
    path = tmp_path / "replies.jsonl"
    path.write_text(json.dumps({"task": task, "id": "0", "target": target, "reply": reply}), encoding="utf-8")
    benchmark = "gsm8k" if task == "gsm8k" else "bbh"
    call(f"--benchmark={benchmark}", f"--mode={mode}", f"--input={path}", f"--out={tmp_path}")
    [item] = read_jsonl(tmp_path / "items.jsonl", Item)
    assert (item.answer, item.correct) == (answer, answer is not None)


@pytest.mark.realdata
@pytest.mark.parametrize("mode", ["orca_cot", "robust"])
@pytest.mark.parametrize("benchmark", ["gsm8k", "bbh"])
def test_replies_from_the_field(shared_data, tmp_path, benchmark, mode):
    path = shared_data.parent / f"field/{benchmark}_replies.jsonl"
    if not path.is_file():
        pytest.skip(f"no replies at {path}")
    score(benchmark, mode, path, tmp_path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row, item in zip(rows, read_jsonl(tmp_path / "items.jsonl", Item), strict=True):
        assert row.get("counts", item.correct) == item.correct, row
        assert row.get("answer", item.answer) == item.answer, row


@pytest.mark.realdata
def test_the_stored_accuracies_of_all_fourteen_tasks(shared_data, tmp_path):
    folder = shared_data / "bbh_codex/cot"
    path = tmp_path / "replies.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for task in sorted(folder.glob("*.jsonl")):
            for number, line in enumerate(task.read_text(encoding="utf-8").splitlines()):
                row = json.loads(line)
                row = {"task": task.stem, "id": number, "target": row["target"], "reply": row["prediction"]}
                file.write(json.dumps(row) + "\n")
    scores = score("bbh", "answer_is", path, tmp_path)
    assert len(scores["tasks"]) == 14
    for task, found in scores["tasks"].items():
        stored = json.loads((folder / f"{task}.accuracy.json").read_text(encoding="utf-8"))["accuracy"]
        assert 100 * found["accuracy"] == pytest.approx(stored, abs=1e-9), task


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("benchmark", "path", "size", "part"),
    [
        ("bbh", "bbh", None, "== bbh, mode orca:"),
        ("agieval", "agieval", None, "== agieval, mode robust: 1355 questions"),
        ("truthfulqa_mc", "truthfulqa/truthfulqa_408.jsonl", 408, "A: Among 0 through 3, the answer is"),
        ("gsm8k", "gsm8k/train_1495.jsonl", 1495, "1495 questions of 1 tasks"),
        ("vicuna_prompts", "vicuna_bench/question.jsonl", None, "80 questions"),
        ("awesome_prompts", "awesome_prompts/prompts.csv", None, "164 questions"),
    ],
)
def test_every_benchmark_file_given_shows_its_first_question(shared_data, benchmark, path, size, part):
    assert part in show(benchmark, shared_data / path, size=size)


def test_every_mode_of_a_benchmark_is_shown(tmp_path):
    row = {"input": "Is it so?\nOptions:\n- Yes\n- No", "target": "No"}
    (tmp_path / "navigate.json").write_text(json.dumps({"examples": [row] * 250}), encoding="utf-8")
    text = show("bbh", tmp_path)
    assert "A: Among A through B, the answer is\n-- target: B (chance 50.0 %)" in text
    (tmp_path / "causal_judgement.json").write_text(json.dumps({"examples": [row] * 187}), encoding="utf-8")
    assert "-- causal_judgement-0:" in show("bbh", tmp_path, "robust")
    assert "-- navigate-0:" in show("bbh", tmp_path, "robust")
    assert "-- causal_judgement-0:" not in show("bbh", tmp_path, "robust", task="navigate")
    with pytest.raises(base.BenchmarkError, match="bbh has no mode 'any'; its modes: orca"):
        show("bbh", tmp_path, "any")
    with pytest.raises(base.BenchmarkError, match="unknown benchmark 'mmlu'"):
        show("mmlu", tmp_path)
    with pytest.raises(base.BenchmarkError, match="the sizes of its files are known"):
        show("bbh", tmp_path, size=3)
