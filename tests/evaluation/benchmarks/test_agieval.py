import json

import pytest

from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import agieval, base, registry
from orca_jax.records import Outcome, Reply
from orca_jax.reporting import published


def row(label="A", *, options=("(A)one", "(B)two", "(C)three", "(D)four"), passage="They count."):
    return {"passage": passage, "question": "Which?", "options": list(options), "label": label}


def write(folder, rows, task="sat-math"):
    path = folder / f"{task}.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    rows = [row("B", passage=None)] * 219 + [row("D")]
    rows[1] = row("B", options=("(A)one", "(C)three", "(B)two", "(D)four"))
    rows[2] = row("C", options=("A one", "two B.1", "C three", "D four"))
    rows[3] = row("B", options=("(A)one", "A two", "(C)three", "(D)four"))
    write(tmp_path, rows)
    return tmp_path


def test_the_papers_prompt_has_no_separator_before_q_and_names_the_range(folder):
    last = registry.questions("agieval", folder, mode="orca")[-1]
    assert last.text == (
        "They count.Q: Which? Answer Choices: (A)one (B)two (C)three (D)four\n"
        "A: Among A through D, the answer is"
    )
    assert (last.target, last.choices, last.chance, last.id) == ("D", tuple("ABCD"), 0.25, "sat-math-219")
    assert registry.questions("agieval", folder, mode="orca_cot")[-1].text.endswith(
        "\nA: Let's think step by step."
    )


def test_the_letter_shown_decides_and_missing_letters_are_filled_in(folder):
    questions = registry.questions("agieval", folder, mode="orca")
    assert "(A)one (C)three (B)two (D)four" in questions[1].text
    assert questions[1].extra["options"] == ["one", "two", "three", "four"]
    assert "(A)one (B)two B.1 (C)three (D)four" in questions[2].text
    assert "(A)one (B)A two (C)three (D)four" in questions[3].text


@pytest.mark.parametrize(("reply", "answer"), [("The answer is (C).", "C"), ("Answer: C", "A"), ("c", None)])
def test_replies_score_as_agievals_own_parser_does(folder, reply, answer):
    questions = registry.questions("agieval", folder, mode="orca")[:1]
    said = [Reply(Outcome.OK, reply)]
    item = scoring.score(questions, said, seed=0, mode="orca", system_message_id=1)[0]
    assert item.answer == answer


def test_questions_about_one_passage_are_a_cluster(folder):
    questions = registry.questions("agieval", folder, mode="robust")
    assert questions[1].extra["cluster"] == "They count."
    assert "cluster" not in questions[0].extra


def test_a_passage_is_one_document_however_many_questions_it_has(tmp_path):
    write(tmp_path, [row()] * 220)
    documents = list(agieval.documents(tmp_path))
    assert len(documents) == 221
    assert [d for d in documents if "passage" in d.id] == [("agieval", "sat-math-0/passage", "They count.")]
    assert documents[0].text == "Which?\n(A)one (B)two (C)three (D)four"


def test_truncated_and_damaged_files_are_named(folder, tmp_path):
    path = write(tmp_path, [row()] * 219)
    with pytest.raises(base.BenchmarkError, match=r"sat-math\.jsonl: expected 220 rows, found 219"):
        registry.questions("agieval", folder, mode="orca")
    for damaged, message in [
        (row("E"), r"sat-math\.jsonl:220: label 'E' is not an option"),
        (row(options=("(A)one", "(A)two", "(C)three", "(D)four")), ":220: options show A, A, C, D"),
        (row(options=("(A)one",)), ":220: options show A, expected ABCD"),
        ({**row(), "options": None}, ":220: options must be a list"),
        ({**row(), "question": " "}, ":220: question must be text"),
    ]:
        write(tmp_path, [row()] * 219 + [damaged])
        with pytest.raises(base.BenchmarkError, match=message):
            registry.questions("agieval", tmp_path, mode="orca")
    path.write_text('{"passage": ', encoding="utf-8")
    with pytest.raises(base.BenchmarkError, match=r"sat-math\.jsonl:1: not a JSON object"):
        registry.questions("agieval", tmp_path, mode="orca")


def test_an_unknown_mode_and_an_empty_folder_are_errors(folder, tmp_path_factory):
    with pytest.raises(base.BenchmarkError, match="orca, orca_cot"):
        registry.questions("agieval", folder, mode="loglik")
    with pytest.raises(base.BenchmarkError, match=r"holds no AGIEval file; expected some of aqua-rat\.jsonl"):
        registry.questions("agieval", tmp_path_factory.mktemp("empty"), mode="orca")


def test_the_sizes_are_the_papers():
    assert len(agieval.TASKS) == 8
    assert sum(size for size, _ in agieval.TASKS.values()) == 2546


@pytest.mark.realdata
def test_chance_and_majority_of_the_real_files_are_the_derived_ones(shared_data):
    questions = registry.questions("agieval", shared_data / "agieval", mode="orca")
    for task in {question.task for question in questions}:
        of_task = [question for question in questions if question.task == task]
        chance = published.cell(table="derived", benchmark="agieval", task=task, system="random_guess")
        assert len(of_task) == chance.n == agieval.TASKS[task][0]
        assert 100 * of_task[0].chance == pytest.approx(chance.value, abs=0.006)
