"""A file of questions is answered once, continues, and refuses another's answers."""

import dataclasses
import json

import pytest

from orca_jax import files
from orca_jax.artifacts import ArtifactError
from orca_jax.experiments.generate import Question, answer_file
from orca_jax.records import Message, Outcome, RecordError, Sampling
from orca_jax.serving.local import LocalStudent
from tests.student.students import SMALL, make_params

SAMPLING = Sampling(max_tokens=12, temperature=1.0, seed=1)


@pytest.fixture(scope="module")
def student(tokenizer):
    config = dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size)
    sizes = {"batch_size": 4, "max_length": 256}
    return LocalStudent(make_params(config), config, tokenizer, "orca", checkpoint="c", **sizes)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def questions(tmp_path):
    rows = [
        {"id": "a", "question": "Is it red?"},
        {"id": "b", "question": "2 + 2 = ?", "system_prompt": "Be exact."},
        {"id": "c", "messages": [{"role": "user", "content": "Hello"}], "extra column": 1},
        {"id": "d", "question": "why " * 300},
        {"id": "e", "question": "No system?", "system_prompt": ""},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_question_is_answered_once(student, questions, tmp_path):
    out = tmp_path / "replies.jsonl"
    assert answer_file(student, questions, out, SAMPLING, system="Be brief.") == 5
    rows = {row["id"]: row for row in lines(out)}
    assert sorted(rows) == ["a", "b", "c", "d", "e"]
    assert rows["d"]["outcome"] == Outcome.ERROR
    before = out.read_bytes()
    answer_file(student, questions, out, SAMPLING, system="Be brief.")
    assert out.read_bytes() == before


def test_each_question_has_its_own_system_message(questions):
    read = list(files.read_jsonl(questions, Question))
    first = [question.conversation("Be brief.")[0] for question in read]
    assert [message.content for message in first[:3]] == ["Be brief.", "Be exact.", "Hello"]
    assert first[4] == Message("user", "No system?")


def test_a_stopped_batch_goes_on_to_the_same_replies(student, questions, tmp_path):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    answer_file(student, questions, whole, SAMPLING)
    first, second, *_ = whole.read_text().splitlines(keepends=True)
    torn.write_text(first + second[:20])
    answer_file(student, questions, torn, SAMPLING)
    by_id = lambda row: row["id"]  # noqa: E731
    assert sorted(lines(torn), key=by_id) == sorted(lines(whole), key=by_id)


@pytest.mark.parametrize("change", [dict(seed=2), dict(stop=("x",)), dict(max_tokens=13)])
def test_answers_of_other_settings_are_not_mixed_in(student, questions, tmp_path, change):
    out = tmp_path / "replies.jsonl"
    answer_file(student, questions, out, SAMPLING)
    with pytest.raises(ArtifactError, match=r"id 'd' of another input, .* give another --out"):
        answer_file(student, questions, out, dataclasses.replace(SAMPLING, **change))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a", "question": "x"}, "two lines have the same id"),
        ({"id": "z"}, "id 'z' asks nothing"),
        ({"id": "z", "messages": [{"role": "user", "content": "x"}] * 2}, "id 'z': turns must be"),
        ({"question": "x"}, "lacks id"),
        ({"id": "z", "question": "\ud83d"}, "id 'z' has half a surrogate pair"),
    ],
    ids=["twice", "nothing", "turns", "no id", "half a pair"],
)
def test_questions_that_cannot_be_asked_are_named(student, questions, tmp_path, row, said):
    with questions.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match=said):
        answer_file(student, questions, tmp_path / "replies.jsonl", SAMPLING)
