import json
from pathlib import Path

import pytest

from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import bbh, registry
from orca_jax.evaluation.benchmarks.base import BenchmarkError
from orca_jax.records import Outcome, Reply
from orca_jax.reporting import published

REAL = Path(__file__).resolve().parents[3] / "../shared/data/bbh"


def lettered(*options, target="A", stem="Which one?"):
    lines = [f"({letter}) {option}" for letter, option in zip("ABCDEFGHIJKLMNOPQR", options)]
    return {"input": "\n".join([stem, "Options:", *lines]), "target": f"({target})"}


YES = {"input": "Is it so?\nOptions:\n- Yes\n- No", "target": "No"}
ROWS = {
    "snarks": [lettered("He is kind", "He is cruel", target="B")] * 87 + [lettered("The end")] * 91,
    "causal_judgement": [YES] * 187,
    "object_counting": [{"input": "How many?", "target": "8"}] * 250,
    "reasoning_about_colored_objects": [lettered(*"abc")] * 249 + [lettered(*"abcdefgh", target="H")],
    "ruin_names": [
        {**lettered("rain", "ruin"), "target": "a, b"} if row in (99, 144) else lettered("rain", "ruin")
        for row in range(250)
    ],
}


def write(directory, task, rows):
    path = directory / f"{task}.json"
    path.write_text(json.dumps({"canary": "keep", "examples": rows}), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    for task, rows in ROWS.items():
        write(tmp_path, task, rows)
    (tmp_path / "notes.json").write_text("not a task", encoding="utf-8")
    return tmp_path


def by_task(questions):
    return {task: [q for q in questions if q.task == task] for task in {q.task for q in questions}}


def test_the_papers_form_letters_every_task_and_leaves_out_free_answers(folder):
    tasks = by_task(registry.questions("bbh", folder, mode="orca"))
    assert set(tasks) == set(ROWS) - {"object_counting"}
    snark = tasks["snarks"][0]
    assert snark.text.split("\n") == [
        bbh.TASKS["snarks"].description,
        "",
        "Q: Which one? Answer Choices: (A) He is kind (B) He is cruel",
        "A: Among A through B, the answer is",
    ]
    assert (snark.target, snark.choices, snark.chance) == ("B", ("A", "B"), 0.5)
    cause = tasks["causal_judgement"][0]
    assert "Q: Is it so? Answer Choices: (A) Yes (B) No\n" in cause.text
    assert cause.target == "B"


def test_the_range_of_letters_is_the_tasks_but_the_prompt_names_the_questions(folder):
    questions = by_task(registry.questions("bbh", folder, mode="orca"))["reasoning_about_colored_objects"]
    assert {question.extra["letters"] for question in questions} == {"ABCDEFGHIJKLMNOPQR"}
    assert "Among A through C" in questions[0].text
    assert "Among A through H" in questions[-1].text
    replies = [Reply(Outcome.OK, "H")] * len(questions)
    items = scoring.score(questions, replies, seed=0, mode="orca", system_message_id=1)
    assert [item.correct for item in items] == [False] * 249 + [True]


def test_the_chain_of_thought_form_keeps_the_files_question_and_answers(folder):
    tasks = by_task(registry.questions("bbh", folder, mode="orca_cot"))
    assert set(tasks) == set(ROWS)
    cause = tasks["causal_judgement"][0]
    assert cause.text == f"Q: {YES['input']}\nA: Let's think step by step."
    assert (cause.target, cause.choices) == ("No", ("Yes", "No"))
    count = tasks["object_counting"][0]
    assert (count.target, count.choices, count.chance) == ("8", (), 0.0)
    said = Reply(Outcome.OK, "Well.\nSo the answer is he is cruel.")
    items = scoring.score(tasks["snarks"][:1], [said], seed=0, mode="orca_cot", system_message_id=1)
    assert items[0].answer == "B"


def test_the_plain_and_the_verbatim_forms(folder):
    robust = by_task(registry.questions("bbh", folder, mode="robust"))["causal_judgement"][0]
    assert (robust.text, robust.target) == (f"Q: {YES['input']}\nA:", "No")
    said = by_task(registry.questions("bbh", folder, mode="answer_is"))["snarks"][0]
    assert (said.target, said.choices, said.chance) == ("(B)", (), 0.5)
    assert said.text.endswith("\nA: Let's think step by step.")


def test_faulty_rows_are_not_scored_and_odd_ones_are(folder):
    questions = registry.questions("bbh", folder, mode="orca")
    tasks = by_task(questions)
    assert len(tasks["ruin_names"]) == 248
    assert not {"ruin_names-99", "ruin_names-144"} & {question.id for question in tasks["ruin_names"]}
    assert (len(tasks["snarks"]), tasks["snarks"][88].chance) == (178, 1.0)
    assert tasks["snarks"][0].majority == pytest.approx(91 / 178)


def test_a_truncated_file_is_named_with_both_sizes(folder):
    write(folder, "snarks", ROWS["snarks"][:-1])
    with pytest.raises(BenchmarkError, match=r"snarks\.json: expected 178 rows, found 177"):
        registry.questions("bbh", folder, mode="orca")


def test_damage_is_named_with_file_and_row(folder):
    write(folder, "causal_judgement", [YES] * 186 + [{**YES, "target": "Maybe"}])
    with pytest.raises(BenchmarkError, match=r"causal_judgement\.json, row 186: target 'Maybe'"):
        registry.questions("bbh", folder, mode="orca")
    (folder / "causal_judgement.json").write_text('{"examples": [', encoding="utf-8")
    with pytest.raises(BenchmarkError, match=r"causal_judgement\.json: not a BIG-Bench file"):
        registry.questions("bbh", folder, mode="orca")


def test_an_empty_folder_and_an_unknown_mode_are_errors(tmp_path):
    with pytest.raises(BenchmarkError, match="holds no BBH file"):
        registry.questions("bbh", tmp_path, mode="orca")
    with pytest.raises(BenchmarkError, match="orca, orca_cot"):
        registry.questions("bbh", tmp_path, mode="cot")


def test_the_sizes_are_the_benchmarks():
    assert len(bbh.TASKS) == 27
    assert sum(task.size for task in bbh.TASKS.values()) == 6511
    assert sum(bbh.TASKS[name].size for name in bbh.PAPER_TASKS) == 5511
    assert len(bbh.PAPER_TASKS) == 23


def test_partial_folders_give_aggregates_that_name_what_is_missing(folder):
    questions = registry.questions("bbh", folder, mode="orca")
    replies = [Reply(Outcome.OK, "A")] * len(questions)
    items = scoring.score(questions, replies, seed=0, mode="orca", system_message_id=1)
    groups = scoring.summarise(items, questions, groups=bbh.GROUPS)["groups"]
    assert (groups["paper23"]["tasks"], len(groups["paper23"]["missing"])) == (4, 19)
    assert len(groups["all27"]["missing"]) == 23


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="no BBH files beside the repository")
def test_chance_and_majority_of_the_real_files_are_the_derived_ones():
    tasks = by_task(registry.questions("bbh", REAL, mode="orca"))
    assert len(tasks) == 11
    for task, questions in tasks.items():
        chance = published.cell(table="derived", benchmark="bbh", task=task, system="random_guess")
        majority = published.cell(table="derived", benchmark="bbh", task=task, system="majority_class")
        assert len(questions) == chance.n == majority.n
        assert 100 * sum(q.chance for q in questions) / len(questions) == pytest.approx(
            chance.value, abs=0.006
        )
        assert 100 * questions[0].majority == pytest.approx(majority.value, abs=0.006)


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="no BBH files beside the repository")
def test_real_direct_answers_score_as_their_authors_stored():
    for task, questions in by_task(registry.questions("bbh", REAL, mode="orca_cot")).items():
        stored = REAL.parent / "bbh_codex/direct" / f"{task}.jsonl"
        rows = [json.loads(line) for line in stored.read_text(encoding="utf-8").splitlines()]
        scored = [rows[int(question.id.rpartition("-")[2])] for question in questions]
        replies = [Reply(Outcome.OK, row["prediction"]) for row in scored]
        items = scoring.score(questions, replies, seed=0, mode="orca_cot", system_message_id=None)
        assert [i.correct for i in items] == [row["prediction"] == row["target"] for row in scored], task


def test_all_rows_are_documents_unscored_ones_too(folder):
    documents = list(bbh.documents(folder))
    assert len(documents) == 187 + 178 + 3 * 250
    assert ("bbh", "ruin_names-99") in {document[:2] for document in documents}


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="no BBH files beside the repository")
def test_the_range_of_letters_holds_all_options_of_the_real_files():
    for task, questions in by_task(registry.questions("bbh", REAL, mode="orca")).items():
        most = max(len(question.choices) for question in questions)
        assert len(bbh.TASKS[task].letters) == max(6, most), task
