import collections
import json

import pytest

from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import base, registry, truthfulqa
from orca_jax.records import Outcome, Reply


def row(number, false=5, **changes):
    choices = {f"true {number}": 1, **{f"false {number} {i}": 0 for i in range(false)}}
    return {"question": f"Is {number} odd?", "mc1_targets": choices, **changes}


@pytest.fixture
def path(tmp_path):
    rows = [row(number) for number in range(815)] + [row(815, false=3), row(816, false=2)]
    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_questions_are_cut_to_four_options_with_digits(path):
    questions = registry.questions("truthfulqa_mc", path, mode="orca")
    assert len(questions) == 816
    for question in questions:
        options = question.extra["options"]
        shown = " ".join(f"({digit}) {option}" for digit, option in zip("0123", options))
        asked, cue = question.text.split("\n")
        assert asked.endswith(f" Answer Choices: {shown}")
        assert cue == "A: Among 0 through 3, the answer is"
        assert options[int(question.target)].startswith("true")
        assert len(set(options)) == 4


def test_the_true_choice_has_no_fixed_place(path):
    questions = registry.questions("truthfulqa_mc", path, mode="orca")
    places = collections.Counter(question.target for question in questions)
    assert min(places[digit] for digit in "0123") > 150
    assert questions[0].majority == max(places.values()) / 816


def test_the_draw_depends_on_the_question_alone(path, tmp_path):
    rows = json.loads(path.read_text(encoding="utf-8"))
    reversed_path = tmp_path / "reversed.jsonl"
    reversed_path.write_text("\n".join(map(json.dumps, rows[::-1])), encoding="utf-8")
    drawn, reversed_drawn = (
        {q.text for q in registry.questions("truthfulqa_mc", one, mode="orca")}
        for one in (path, reversed_path)
    )
    assert drawn == reversed_drawn


def test_the_first_digit_in_range_is_the_answer(path):
    questions = registry.questions("truthfulqa_mc", path, mode="orca")[:1]
    replies = [Reply(Outcome.OK, f"Option ({questions[0].target}), not 3.")]
    assert scoring.score(questions, replies, seed=0, mode="orca", system_message_id=1)[0].correct


def test_the_step_by_step_form_is_lettered(path):
    question = registry.questions("truthfulqa_mc", path, mode="orca_cot")[0]
    assert question.choices == tuple("ABCD")
    said = Reply(Outcome.OK, f"Hm.\nThe answer is ({question.target}).")
    items = scoring.score([question], [said], seed=0, mode="orca_cot", system_message_id=1)
    assert items[0].correct


def test_all_questions_are_documents(path):
    assert len(list(truthfulqa.documents(path))) == 817


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mc1_targets": {"a": 1, "b": 1, "c": 0}}, "row 3: mc1_targets must map choices"),
        ({"mc1_targets": ["a"]}, "row 3: mc1_targets must map choices"),
        ({"question": None}, "row 3: question or Question must be text"),
    ],
)
def test_damaged_rows_are_named(path, change, message):
    rows = json.loads(path.read_text(encoding="utf-8"))
    rows[3] |= change
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(base.BenchmarkError, match=message):
        registry.questions("truthfulqa_mc", path, mode="orca")


def test_a_truncated_file_is_refused(path):
    rows = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(rows[:800]), encoding="utf-8")
    with pytest.raises(base.BenchmarkError, match=r"mc_task\.json: expected 790 or 817 rows, found 800"):
        registry.questions("truthfulqa_mc", path, mode="orca")
    path.write_text(json.dumps(rows)[:-10], encoding="utf-8")
    with pytest.raises(base.BenchmarkError, match=r"mc_task\.json:1: the JSON array is damaged or cut off"):
        registry.questions("truthfulqa_mc", path, mode="orca")


@pytest.mark.realdata
def test_half_of_the_real_file_is_read_when_its_size_is_given(shared_data):
    path = shared_data / "truthfulqa/truthfulqa_408.jsonl"
    questions = registry.questions("truthfulqa_mc", path, mode="orca", size=408)
    assert len(questions) == 408 - 22 - 39  # those with two and with three choices
    with pytest.raises(base.BenchmarkError, match="found 408"):
        registry.questions("truthfulqa_mc", path, mode="orca")
