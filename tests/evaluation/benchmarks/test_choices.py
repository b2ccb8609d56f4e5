"""Multiple-choice sets of a config's own, in the fields that published ones have."""

import collections
import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orca_jax.config import ChoicesConfig, complete, load
from orca_jax.config_check import ConfigError
from orca_jax.configs import mini
from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import registry
from orca_jax.evaluation.benchmarks.base import BenchmarkError
from orca_jax.records import Outcome, Reply

ARC = dict(question=("question",), options=("choices.text",), labels=("choices.label",), answer="answerKey")
ARC_ROW = {
    "id": "Mercury_1",
    "question": "Which is a metal?",
    "choices": {"text": ["tin", "tea", "air", "ink"], "label": ["1", "2", "3", "4"]},
    "answerKey": "1",
}
MMLU_PRO = dict(question=("question",), options=("options",), answer="answer", task="category")
MMLU_PRO_ROW = {
    "question": "What is 3 + 4?",
    "options": [str(number) for number in range(10)],
    "answer": "H",
    "answer_index": 7,
    "category": "math",
}
BINARY = dict(question=("Question",), options=("Best Answer", "Best Incorrect Answer"))


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(path, name="own", **fields):
    return ChoicesConfig(name=name, path=str(path), **fields)


def asked(path, mode="orca", **fields):
    return registry.questions("own", config(path, **fields), mode=mode)


def target_text(question):
    return question.extra["options"][question.choices.index(question.target)]


@pytest.fixture
def of_row(tmp_path):
    return lambda row, **fields: asked(lines(tmp_path / "one.jsonl", [row]), **fields)[0]


def test_arc_in_parquet_is_lettered_whatever_its_labels(tmp_path):
    pq.write_table(pa.Table.from_pylist([ARC_ROW, {**ARC_ROW, "answerKey": "4"}]), tmp_path / "arc.parquet")
    first, second = asked(tmp_path / "arc.parquet", **ARC)
    assert first.text.split("\n") == [
        "Q: Which is a metal? Answer Choices: (A) tin (B) tea (C) air (D) ink",
        "A: Among A through D, the answer is",
    ]
    assert (first.target, second.target, first.chance) == ("A", "D", 0.25)
    assert (first.task, second.id) == ("own", "own-1")


def test_arc_as_its_authors_lines_have_it(of_row):
    entries = [{"text": "tin", "label": "A"}, {"text": "tea", "label": "B"}]
    row = {"question": {"stem": "Which?", "choices": entries}, "answerKey": "B"}
    fields = dict(options=("question.choices.text",), labels=("question.choices.label",), answer="answerKey")
    assert of_row(row, question=("question.stem",), **fields).target == "B"


def test_mmlu_pro_has_ten_letters_and_its_categories(of_row):
    question = of_row(MMLU_PRO_ROW, **MMLU_PRO)
    assert (question.task, question.target, question.chance) == ("math", "H", 0.1)
    reply = [Reply(Outcome.OK, "(H)")]
    (item,) = scoring.score([question], reply, seed=0, mode="orca", system_message_id=1)
    assert item.correct
    assert of_row(MMLU_PRO_ROW, **{**MMLU_PRO, "answer": "answer_index"}).target == "H"


def test_truthfulqas_binary_form_has_the_right_one_in_no_fixed_place(tmp_path):
    with (tmp_path / "TruthfulQA.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["Question", "Best Answer", "Best Incorrect Answer"])
        writer.writeheader()
        writer.writerows(
            {"Question": f"Is {n}\neven?", "Best Answer": "Maybe, yes", "Best Incorrect Answer": "No"}
            for n in range(200)
        )
    questions = asked(tmp_path / "TruthfulQA.csv", **BINARY)
    assert {target_text(question) for question in questions} == {"Maybe, yes"}
    places = collections.Counter(question.target for question in questions)
    assert places["A"] + places["B"] == 200
    assert min(places.values()) > 70
    assert questions[0].text.startswith("Q: Is 0\neven? Answer Choices: (A) ")


@pytest.mark.parametrize(
    ("row", "fields", "expected"),
    [
        ({"label": 1}, dict(answer="label"), "right"),
        ({"label": "right"}, dict(answer="label"), "right"),
        ({"label": "(B)"}, dict(answer="label"), "right"),
        ({"label": "1"}, dict(answer="label", labels=("0", "1", "2")), "right"),
        ({"label": "2"}, dict(answer="label", labels=("1", "2", "3")), "right"),
        ({"label": 2}, dict(answer="label", labels=("1", "2", "3")), "right"),
    ],
)
def test_an_answer_is_a_label_a_number_or_a_text(of_row, row, fields, expected):
    row = {"q": "Which?", "endings": ["wrong", "right", "none"], **row}
    assert target_text(of_row(row, question=("q",), options=("endings",), **fields)) == expected


def test_options_in_fields_of_their_own_may_be_fewer(of_row):
    row = {"q": "Which?", "a": "one", "b": None, "c": "three", "d": "", "key": "C"}
    question = of_row(row, question=("q",), options=("a", "b", "c", "d"), answer="key")
    assert (question.extra["options"], question.target) == (["one", "three"], "B")
    assert (
        of_row({**row, "key": 2}, question=("q",), options=("a", "b", "c", "d"), answer="key").target == "B"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(answerKey="5"), r"one\.jsonl:1: answerKey '5' names not one option, by label \(1, 2, 3, 4\)"),
        (dict(answerKey=None), "answerKey None names not one option"),
        (dict(question=" "), "question must be text, not ' '"),
        (dict(choices={"text": ["tin"], "label": ["1"]}), "1 options; a question needs 2 to 26"),
        (dict(choices={"text": ["tin", "tea"], "label": ["1"]}), r"2 options, but as labels \['1'\]"),
        (dict(choices={"text": ["tin", None], "label": ["1", "2"]}), "an option must be text, not None"),
        (
            dict(choices={"texts": []}),
            "no field 'choices.text'; the row has id, question, choices, answerKey",
        ),
        (dict(choices={"text": "tin", "label": []}), "choices.text must be a list, not 'tin'"),
    ],
)
def test_what_a_row_lacks_is_named(of_row, change, message):
    with pytest.raises(BenchmarkError, match=message):
        of_row({**ARC_ROW, **change}, **ARC)


def test_an_answer_that_may_be_two_options_needs_labels(of_row):
    row = {"q": "Which letter is second?", "options": ["B", "A"], "answer": "B"}
    fields = dict(question=("q",), options=("options",), answer="answer")
    with pytest.raises(BenchmarkError, match="give the options' `labels`"):
        of_row(row, **fields)
    assert of_row(row, **fields, labels=("A", "B")).target == "B"
    assert target_text(of_row(row, **fields, labels=("A", "B"))) == "A"


def test_absent_and_empty_files_are_refused(tmp_path):
    with pytest.raises(BenchmarkError, match=r"no\.jsonl: no such file"):
        asked(tmp_path / "no.jsonl", **ARC)
    with pytest.raises(BenchmarkError, match="no question in it"):
        asked(lines(tmp_path / "empty.jsonl", []), **ARC)
    with pytest.raises(
        BenchmarkError, match="own has no mode 'answer_is'; its modes: orca, orca_cot, robust"
    ):
        asked(tmp_path / "no.jsonl", mode="answer_is", **ARC)


def experiment(path, name="arc", **changes):
    given = mini.get_config("runlocal")
    given.choices = [dict(name=name, path=str(path), **ARC)]
    given.evaluation.update(changes)
    return complete(given)


def test_a_config_names_its_sets_and_their_modes(tmp_path):
    path = lines(tmp_path / "arc.jsonl", [ARC_ROW])
    found = load(experiment(path))
    assert found.evaluation.modes["arc"] == ("orca",)
    assert found.given_benchmarks["arc"] == config(path, "arc", **ARC)
    assert [one.text for one in registry.documents(found.given_benchmarks)] == [
        "Which is a metal? Answer Choices: (A) tin (B) tea (C) air (D) ink"
    ]
    with pytest.raises(ConfigError, match="arc has no mode 'answer_is'; known: orca, orca_cot, robust"):
        load(experiment(path, modes={"arc": ["answer_is"]}))
    with pytest.raises(ConfigError, match=r"unknown benchmark 'ark'; known: .*arc"):
        load(experiment(path, modes={"ark": ["orca"]}))
    for name in ("bbh", "a/b", "puzzles"):
        with pytest.raises(ConfigError, match=f"is called '{name}': give it a name"):
            load(experiment(path, name))


@pytest.mark.realdata
def test_half_of_truthfulqa_as_two_options(shared_data, tmp_path):
    rows = [
        json.loads(line)
        for line in (shared_data / "truthfulqa/truthfulqa_408.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    two = [
        {**row, "Best Incorrect Answer": row["Incorrect Answers"].partition(";")[0].strip()} for row in rows
    ]
    questions = asked(lines(tmp_path / "two.jsonl", two), **BINARY)
    assert len(questions) == 408
    assert {target_text(q) for q in questions} == {row["Best Answer"].strip() for row in rows}


@pytest.mark.realdata
def test_a_published_set_of_other_fields(shared_data):
    agieval = shared_data / "agieval/aqua-rat.jsonl"
    found = asked(agieval, question=("question",), options=("options",), answer="label")
    theirs = registry.questions("agieval", shared_data / "agieval", mode="orca")
    assert [q.target for q in found] == [q.target for q in theirs if q.task == "aqua-rat"]


# --- Questions without options, asked as they stand

STATED = dict(question=("instruction",), answer="label")
STATED_ROW = {"instruction": "Q: Which is a metal? Answer choices: A: tin, B: tea", "label": "A"}


def replied(questions, text):
    return scoring.score(
        questions, [Reply(Outcome.OK, text)] * len(questions), seed=0, mode="robust", system_message_id=None
    )


@pytest.mark.parametrize(
    ("labels", "label", "right", "wrong", "chance"),
    [
        (("A", "B"), "A", "It is a metal. The answer is A", "The answer is B", 0.5),
        (("True", "False"), True, "The answer is True", "The answer is False.", 0.5),
        ((), "12", "Six and six. <answer>12.0</answer>", "<answer>13</answer>", None),
    ],
)
def test_a_question_with_its_options_in_its_text_or_none(of_row, labels, label, right, wrong, chance):
    question = of_row({**STATED_ROW, "label": label}, mode="robust", labels=labels, **STATED)
    assert question.text == STATED_ROW["instruction"]
    assert (question.chance, question.target) == (chance, str(label))
    assert [replied([question], text)[0].correct for text in (right, wrong)] == [True, False]


def test_a_label_that_is_none_is_named(tmp_path):
    path = lines(tmp_path / "one.jsonl", [STATED_ROW, {**STATED_ROW, "label": "C"}])
    with pytest.raises(BenchmarkError, match=r"one\.jsonl:2: label 'C' is none of the labels A, B"):
        asked(path, mode="robust", labels=("A", "B"), **STATED)
    with pytest.raises(BenchmarkError, match="own has no mode 'orca'; its modes: robust"):
        asked(path, **STATED)


def test_a_share_is_asked_and_kept_out_of_training_by_the_question_alone(tmp_path):
    rows = [{"instruction": f"What is {n} + 1?", "label": str(n + 1)} for n in range(200)]
    some = asked(lines(tmp_path / "all.jsonl", rows), mode="robust", share=0.3, **STATED)
    assert 40 < len(some) < 80
    again = asked(lines(tmp_path / "back.jsonl", rows[::-1]), mode="robust", share=0.3, **STATED)
    assert {question.text for question in again} == {question.text for question in some}
    documents = registry.documents({"own": config(tmp_path / "all.jsonl", share=0.3, **STATED)})
    assert [document.text for document in documents] == [question.text for question in some]
    with pytest.raises(BenchmarkError, match=r"the share 0\.001 of 'own' has no question"):
        asked(lines(tmp_path / "one.jsonl", rows[:1]), mode="robust", share=0.001, **STATED)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (dict(question=["q"]), "give options, or answer for questions without them"),
        (dict(question=["q"], answer="a", labels=["A"]), "a question with one label has one answer"),
    ],
)
def test_a_set_that_cannot_be_asked_is_refused(fields, reason):
    own = mini.get_config("runlocal")
    own.choices = [dict(name="own", path="x.jsonl", **fields)]
    with pytest.raises(ConfigError, match=reason):
        load(complete(own))
