"""ToxiGen's prompts, open questions, GSM8K, and all benchmarks by name."""

import csv
import json
import re

import pytest

from orca_jax.config import BENCHMARK_MODES
from orca_jax.evaluation.benchmarks import base, registry, toxigen
from orca_jax.evaluation.extraction import same_answer


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def toxigen_line(number):
    return f"- cats are number {number}\\n- i have a cat\\n-"


@pytest.fixture
def prompts(tmp_path):
    for name in ("neutral_women_1k", "hate_women_1k", "neutral_bisexual_1k"):
        lines = [toxigen_line(number) for number in range(999)] + [toxigen_line(0)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_toxigen_prompts_are_lines_that_a_model_goes_on_with(prompts):
    questions = registry.questions("toxigen", prompts, mode="toxigen_neutral")
    assert len(questions) == 1000  # women; the group bisexual is none of the paper's
    assert questions[7].text == "- cats are number 7\n- i have a cat\n-"
    assert (questions[7].task, questions[7].extra) == ("women", {"kind": "neutral"})


def test_toxigens_sentences_are_documents_once_a_file(prompts):
    documents = list(toxigen.documents(prompts))
    assert len(documents) == 3 * 1000
    assert documents[0].text == "cats are number 0"


def test_a_truncated_toxigen_file_and_an_unknown_mode_are_refused(prompts):
    (prompts / "hate_women_1k.txt").write_text(toxigen_line(1), encoding="utf-8")
    with pytest.raises(base.BenchmarkError, match=r"hate_women_1k\.txt: expected 1000 rows, found 1"):
        registry.questions("toxigen", prompts, mode="toxigen_hate")
    with pytest.raises(base.BenchmarkError, match="its modes: toxigen_hate, toxigen_neutral"):
        registry.questions("toxigen", prompts, mode="toxigen_kind")


def test_the_papers_thirteen_groups():
    assert len(toxigen.PAPER_GROUPS) == 13
    assert len(toxigen.GROUPS) == 16


def test_vicunas_prompts_in_both_forms(tmp_path):
    old = [{"question_id": i, "text": f"How {i}?", "category": "fermi"} for i in range(80)]
    new = [{"question_id": i, "turns": [f"How {i}?"], "category": "fermi"} for i in range(80)]
    read = [
        registry.questions(
            "vicuna_prompts", write_lines(tmp_path / "question.jsonl", rows), mode="open_ended"
        )
        for rows in (old, new)
    ]
    assert read[0] == read[1]
    assert (read[0][3].text, read[0][3].extra) == ("How 3?", {"category": "fermi", "question_id": 3})


def write_awesome(path, count):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["act", "prompt"])
        writer.writeheader()
        for number in range(count):
            writer.writerow({"act": "Poet", "prompt": f'Be a "poet",\nnumber {number % 160}.'})
    return path


@pytest.mark.parametrize("count", [163, 164])
def test_both_states_of_the_awesome_prompts(tmp_path, count):
    path = write_awesome(tmp_path / "prompts.csv", count)
    questions = registry.questions("awesome_prompts", path, mode="open_ended")
    assert (len(questions), questions[1].text) == (count, 'Be a "poet",\nnumber 1.')


def test_truncated_open_questions_are_refused(tmp_path):
    path = write_awesome(tmp_path / "prompts.csv", 150)
    with pytest.raises(base.BenchmarkError, match=r"prompts\.csv: expected 163 or 164 rows, found 150"):
        registry.questions("awesome_prompts", path, mode="open_ended")
    with pytest.raises(base.BenchmarkError, match="unknown benchmark 'poems'"):
        registry.questions("poems", path, mode="open_ended")
    rows = [{"Instruction": "Do."}] * 217 + [{"Skill": "Math"}]
    with pytest.raises(base.BenchmarkError, match=r"testset\.jsonl:218: Instruction must be text"):
        registry.questions(
            "wizardlm_prompts", write_lines(tmp_path / "testset.jsonl", rows), mode="open_ended"
        )


def test_gsm8ks_answer_is_the_number_after_the_marks(tmp_path):
    rows = [{"question": "How much?", "answer": "2 + 998 = <<2+998=1000>>1000\n#### 1,000"}] * 1319
    path = write_lines(tmp_path / "test.jsonl", rows)
    question = registry.questions("gsm8k", path, mode="orca_cot")[0]
    assert (question.target, question.choices) == ("1000", ())
    assert same_answer("$1,000", question.target)
    write_lines(path, rows[:-1])
    with pytest.raises(base.BenchmarkError, match=r"test\.jsonl: expected 1319 rows, found 1318"):
        registry.questions("gsm8k", path, mode="orca_cot")
    write_lines(path, [{"question": "How much?", "answer": "Much."}])
    with pytest.raises(base.BenchmarkError, match=r"test\.jsonl:1: the answer does not end with"):
        registry.questions("gsm8k", path, mode="orca_cot", size=1)
    with pytest.raises(base.BenchmarkError, match="give the size"):
        registry.questions("gsm8k", tmp_path / "part.jsonl", mode="orca_cot")


def test_own_prompts_are_any_json_lines(tmp_path):
    path = write_lines(tmp_path / "own.jsonl", [{"prompt": "Do."}, {"question": "Why?", "category": "c"}])
    questions = registry.questions("own_prompts", path, mode="open_ended")
    assert [question.text for question in questions] == ["Do.", "Why?"]
    assert questions[1].extra == {"category": "c"}
    with pytest.raises(base.BenchmarkError, match=r"own\.jsonl: expected 1 rows, found 0"):
        registry.questions("own_prompts", write_lines(path, []), mode="open_ended")


def test_every_mode_is_asked_by_its_name_and_no_other(prompts):
    hate = registry.questions("toxigen", prompts, mode="toxigen_hate")
    assert {question.extra["kind"] for question in hate} == {"hate"}
    with pytest.raises(base.BenchmarkError, match="toxigen has no mode 'orca'; its modes: toxigen_hate"):
        registry.questions("toxigen", prompts, mode="orca")


def test_all_benchmarks_by_name(prompts, tmp_path_factory):
    path = write_awesome(tmp_path_factory.mktemp("awesome") / "prompts.csv", 164)
    sources = {"toxigen": prompts, "awesome_prompts": path}
    assert {document.benchmark for document in registry.documents(sources)} == set(sources)
    with pytest.raises(base.BenchmarkError, match="unknown benchmark 'mmlu'; known: bbh, bbeh, agieval"):
        list(registry.documents({"mmlu": path}))


@pytest.mark.realdata
def test_real_files_are_read_whole(shared_data):
    sources = {
        "bbh": shared_data / "bbh",
        "agieval": shared_data / "agieval",
        "vicuna_prompts": shared_data / "vicuna_bench/question.jsonl",
        "awesome_prompts": shared_data / "awesome_prompts/prompts.csv",
    }
    asked = {
        name: len(registry.questions(name, path, mode=BENCHMARK_MODES[name][-1]))
        for name, path in sources.items()
    }
    assert asked == {"bbh": 3259, "agieval": 1355, "vicuna_prompts": 80, "awesome_prompts": 164}
    assert sum(1 for _ in registry.documents(sources)) > sum(asked.values())
    gsm = registry.questions("gsm8k", shared_data / "gsm8k/train_1495.jsonl", mode="orca_cot", size=1495)
    assert all(re.fullmatch(r"-?\d+(\.\d+)?", question.target) for question in gsm)
