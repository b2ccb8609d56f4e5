"""A file with several teachers' answers beside each question: equal questions, scores, a held-out part."""

import itertools
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orca_jax import artifacts, conversations, files
from orca_jax.config import load
from orca_jax.config_arms import load_set
from orca_jax.configs import granularity, gym
from orca_jax.data import prepared
from orca_jax.evaluation import extraction
from orca_jax.evaluation import run as evaluation_run
from orca_jax.experiments import ablate, collect
from orca_jax.records import RecordError, Trace

FAMILIES = ("sums", "counts")


def rows(count=60):
    """Of the weaker teacher every third answer is wrong and every tenth is missing."""
    return [
        {
            "family": FAMILIES[n % 2],
            "question": f"What is {n} + {n}?\n",
            "expected": str(2 * n),
            "mistral_small_24b": None if n % 10 == 0 else f"<answer>{2 * n + (n % 3 == 0)}</answer>",
            "mistral_small_24b_score": float(n % 3 > 0 and n % 10 > 0),
            "llama4_maverick": f"Twice {n}. <answer>{2 * n}</answer>",
            "llama4_maverick_score": 1.0,
        }
        for n in range(count)
    ]


def experiment(folder, variant="all"):
    """The gym's set on a small file, with rows for the tests' eight devices."""
    path = folder / "gym.parquet"
    pq.write_table(pa.Table.from_pylist(rows()), path)
    config = gym.get_config(f"variant={variant},data={path},runlocal")
    config.base.data.update(row_length=128, validation_fraction=0.2)
    config.base.train.batch_rows = 8
    config.base.student.vocab_size = 320
    return config


def collected(config, workdir):
    """The traces of each teacher, and the counts of its manifest."""
    loaded = load(config.base)
    collect.run(loaded, workdir)
    folders = {teacher.name: workdir / "traces" / teacher.name for teacher in loaded.teachers}
    return {
        name: (
            list(files.read_jsonl(folder / collect.TRACES, Trace)),
            artifacts.read_manifest(folder)["counts"],
        )
        for name, folder in folders.items()
    }


def test_all_teachers_answer_the_same_questions_and_the_test_is_none_of_them(tmp_path):
    config = experiment(tmp_path)
    found, loaded = collected(config, tmp_path / "w"), load(config.base)
    ids = {name: [trace.query_id for trace in made] for name, (made, _) in found.items()}
    assert ids["answers"] == ids["weaker"] == ids["stronger"]
    asked = {question.text for question in itertools.chain(*evaluation_run.evaluations(loaded).values())}
    trained = {trace.messages[-2].content for trace in found["answers"][0]}
    assert asked
    assert not asked & trained
    assert asked | trained == {row["question"].strip() for row in rows()}
    assert {made["asks_a_benchmark"] for _, made in found.values()} == {len(asked)}
    held = [{one for one in every if prepared.held_out(one, loaded)} for every in ids.values()]
    assert held[0]
    assert held[0] == held[1] == held[2]


def test_a_trace_has_its_teachers_answer_alone(tmp_path):
    found = collected(experiment(tmp_path), tmp_path / "w")
    first = {name: made[1] for name, (made, _) in found.items()}
    by_question = {row["question"].strip(): row for row in rows()}
    row = by_question[first["weaker"].messages[-2].content]
    assert first["weaker"].answer == row["mistral_small_24b"]
    assert first["stronger"].answer == row["llama4_maverick"]
    assert first["answers"].answer == first["weaker"].target == row["expected"]
    assert (first["weaker"].task, first["weaker"].extra) == (
        row["family"],
        {"score": row["mistral_small_24b_score"]},
    )
    assert first["answers"].extra == {}


def test_missing_answers_are_counted_and_wrong_ones_left_out_if_asked(tmp_path):
    (every, counts), (right, left) = (
        collected(experiment(tmp_path, variant), tmp_path / variant)["weaker"] for variant in ("all", "right")
    )
    missing = sum(not trace.answer for trace in every)
    assert counts["outcomes"] == {"ok": len(every) - missing, "empty": missing}
    assert missing > 0
    assert right == [trace for trace in every if trace.extra["score"] == 1]
    assert left["below_min_score"] == len(every) - len(right) > missing


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"mistral_small_24b_score": "high"},
            "column 'mistral_small_24b_score' must be a number, not 'high'",
        ),
        ({"mistral_small_24b": ["a"]}, "column 'mistral_small_24b' must be text"),
        ({"tools": "[1]"}, "'tools' is not read"),
        ({"question": " "}, "column 'question' is empty"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(tmp_path, change, reason):
    files.write_json_rows(tmp_path / "some.jsonl", [rows(1)[0] | change])
    columns = dict(question="question", answer="mistral_small_24b", score="mistral_small_24b_score")
    with pytest.raises(RecordError, match=rf"{re.escape(reason)}"):
        list(conversations.read_traces(tmp_path / "some.jsonl", columns=columns))


def test_a_system_message_beside_the_columns_is_read(tmp_path):
    files.write_json_rows(tmp_path / "some.jsonl", [{"q": "Why?", "system": "Be kind.", "a": 5, "b": "no"}])
    [trace] = conversations.read_traces(
        tmp_path / "some.jsonl", teacher="a", columns=dict(question="q", answer="a")
    )
    assert [message.content for message in trace.messages] == ["Be kind.", "Why?", "5"]


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    config = experiment(tmp_path)
    config.base.teachers[1]["columns"]["answer"] = "gpt9"
    with pytest.raises(
        ValueError, match=r"gym\.parquet: row 0: column 'gpt9' is missing, among family, question"
    ):
        collect.run(load(config.base), tmp_path / "w")


@pytest.mark.parametrize(
    ("key", "value"),
    [("answer", "llama4_maverick"), ("task", ""), ("min_score", 0.5), ("score", "llama4_maverick_score")],
)
def test_traces_of_other_columns_are_refused_by_name(tmp_path, key, value):
    config = experiment(tmp_path)
    collected(config, tmp_path / "w")
    config.base.teachers[1]["columns"][key] = value
    with pytest.raises(artifacts.ArtifactError, match=rf"columns\.{key}: .* there, .* now"):
        collect.run(load(config.base), tmp_path / "w")


@pytest.mark.proof
def test_arms_run_to_their_table(tmp_path):
    config = experiment(tmp_path)
    config.arms = [dict(arm) for arm in config.arms if arm["name"] in ("answers", "stronger", "weaker")]
    config.hypotheses = config.hypotheses[:2]
    text = ablate.ablate(load_set(config), tmp_path / "w")
    assert "stronger - weaker" in text
    assert "oracle" not in text


@pytest.mark.realdata
def test_the_real_files(shared_data, tmp_path):
    """Both sets resolve on the real files; scores and answers are as their authors have them."""
    folder = shared_data / "granularity"
    loaded = load(granularity.get_config(f"variant=laptop,data={folder},runlocal").base)
    assert len(list(itertools.chain(*evaluation_run.evaluations(loaded).values()))) == 500
    counts = collect.collect(loaded, loaded.teachers[1], tmp_path)["counts"]
    assert (counts["traces"], counts["asks_a_benchmark"]) == (4949, 0)
    loaded = load(gym.get_config(f"data={shared_data / 'reasoning_gym_teachers.parquet'},runlocal").base)
    asked = len(list(itertools.chain(*evaluation_run.evaluations(loaded).values())))
    counts = collect.collect(loaded, loaded.teachers[2], tmp_path)["counts"]
    assert (counts["traces"], counts["asks_a_benchmark"]) == (3918 - asked, asked)
    assert 300 < asked < 500
    traces = list(files.read_jsonl(tmp_path / "traces/stronger" / collect.TRACES, Trace))
    as_scored = 0
    some = traces[::8]
    for trace in some:
        answer = extraction.robust(trace.answer, form=extraction.form(trace.target))
        right = answer is not None and extraction.same_answer(answer, trace.target)
        as_scored += right == (trace.extra["score"] == 1)
    # Of the others most have several right answers.
    assert 0.85 < as_scored / len(some) < 0.95
