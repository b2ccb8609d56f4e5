"""Queries under their system messages, and what is asked of whom."""

import collections
import dataclasses
import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import collect, evaluate, prepare, students
from experiments.config import PuzzlesConfig, TeacherConfig
from orca_jax import record_files
from orca_jax.artifacts import ArtifactError
from orca_jax.asking.ledger import Ledger
from orca_jax.queries import puzzles, system_messages
from orca_jax.records import Outcome, Query, RecordError, Trace
from orca_jax.serving.endpoint import StudentEndpoint
from orca_jax.training.curriculum import StageConfig


def queries(workdir):
    return list(record_files.read_jsonl(workdir / "queries" / collect.QUERIES, Query))


def traces(workdir, teacher):
    return list(record_files.read_jsonl(workdir / "traces" / teacher / collect.TRACES, Trace))


# --- System messages


def assigned(shares, *, multiple_choice, count=4000, seed=0):
    found = [collect.assign_message(f"query {i}", multiple_choice, shares, seed) for i in range(count)]
    return {message: times / count for message, times in collections.Counter(found).items()}


def test_messages_come_in_their_shares():
    found = assigned({"1": 1.0, "7": 2.0, "8": 1.0}, multiple_choice=True)
    assert found == pytest.approx({1: 0.25, 7: 0.5, 8: 0.25}, abs=0.03)


def test_messages_for_multiple_choice_only_go_to_puzzles_with_options():
    found = assigned({"1": 1.0, "7": 2.0, "8": 1.0}, multiple_choice=False)
    assert found == pytest.approx({1: 1 / 3, 7: 2 / 3}, abs=0.03)


@settings(max_examples=30)
@given(st.text(max_size=8), st.integers(0, 9), st.permutations(["1", "4", "7", "8"]))
def test_assignment_depends_on_query_and_seed_alone(query_id, seed, order):
    shares = {name: float(name) for name in order}
    assert collect.assign_message(query_id, True, shares, seed) == collect.assign_message(
        query_id, True, dict(sorted(shares.items())), seed
    )


def test_seed_changes_the_assignment():
    first, second = (
        [collect.assign_message(f"q{i}", True, {"1": 1.0, "7": 1.0}, seed) for i in range(50)]
        for seed in (0, 1)
    )
    assert first != second


def test_no_message_for_a_query_without_options():
    with pytest.raises(ValueError, match="only messages for multiple choice"):
        collect.assign_message("q", False, {"8": 1.0}, 0)


@settings(max_examples=40)
@given(st.lists(st.one_of(st.text(), st.integers()), min_size=1, max_size=3))
def test_unit_hash_is_a_share(parts):
    assert 0 <= collect.unit_hash(*parts) < 1
    assert collect.unit_hash(*parts) == collect.unit_hash(*parts)


# --- Queries and traces of a run


def test_queries_are_those_configured(finished, mini):
    config, made = mini(), queries(finished)
    assert (
        len({query.id for query in made})
        == len(made)
        == len(config.puzzles.families) * config.puzzles.per_family
    )
    assert {query.extra["family"] for query in made} == set(config.puzzles.families)
    assert {str(query.system_message_id) for query in made} == set(config.puzzles.messages)
    for query in made:
        if system_messages.get(query.system_message_id).multiple_choice_only:
            assert query.multiple_choice


def test_every_teacher_is_asked_its_share_of_the_same_queries(finished, mini):
    apprentice, expert = (traces(finished, name) for name in ("apprentice", "expert"))
    assert [trace.query_id for trace in apprentice] == [query.id for query in queries(finished)]
    asked = {trace.query_id for trace in expert}
    assert asked < {trace.query_id for trace in apprentice}
    assert len(asked) / len(apprentice) == pytest.approx(mini().teachers[1].share, abs=0.12)


def test_traces_are_conversations_with_the_teachers_answer(finished):
    for query, trace in zip(queries(finished), traces(finished, "apprentice")):
        system, user, answer = trace.messages
        assert system.content == system_messages.get(query.system_message_id).text
        assert user.content == query.text
        assert trace.outcome is Outcome.OK
        assert answer.content == trace.answer != ""
        assert trace.teacher == "apprentice"


def test_the_expert_is_right_and_the_apprentice_not_always(finished):
    def right(trace):
        return trace.target in trace.answer

    assert all(map(right, traces(finished, "expert")))
    assert not all(map(right, traces(finished, "apprentice")))


def test_training_and_test_puzzles_are_disjoint(finished, mini):
    examined = evaluate.test_puzzles(mini())
    assert examined
    assert not {puzzle.id for puzzle in examined} & {query.id for query in queries(finished)}
    assert not {puzzle.question for puzzle in examined} & {query.text for query in queries(finished)}


def test_test_puzzles_of_another_seed_are_no_training_puzzles_either(finished, mini):
    examined = evaluate.test_puzzles(mini(seed=3, **{"evaluation.per_family": 60}))
    assert not {puzzle.id for puzzle in examined} & {query.id for query in queries(finished)}


def paid(workdir):
    """What the ledger knows of every teacher."""
    with Ledger(workdir / "ledger.sqlite") as ledger:
        return ledger.status()


def test_collecting_again_asks_for_nothing(copied, finished, mini, monkeypatch):
    workdir = copied("traces")
    monkeypatch.setattr(collect, "oracle", Silent)
    collect.run(mini(), workdir)
    assert paid(workdir) == paid(finished)
    assert traces(workdir, "expert") == traces(finished, "expert")


class Silent:
    """A teacher of a real one's identity that must not be asked."""

    def __init__(self, config, teacher):
        made, _ = collect.training_puzzles(config.puzzles, config.seed)
        knobs = collect.Knobs(
            brevity=teacher.brevity,
            reach=teacher.reach,
            error_rate=teacher.error_rate,
            bare_reply=teacher.bare_reply,
        )
        self.identity = collect.OracleTeacher(teacher.name, made, knobs, config.seed).identity

    async def reply(self, messages, sampling):
        raise AssertionError("this answer is in the ledger")


def test_collected_again_the_traces_are_byte_for_byte_the_same(copied, finished, mini):
    workdir = copied("traces", "queries")
    collect.run(mini(), workdir)
    for name in ("traces/expert/traces.jsonl", "traces/apprentice/traces.jsonl", "queries/queries.jsonl"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()


def test_a_workdir_of_other_settings_is_refused_and_the_change_named(finished, mini):
    with pytest.raises(ArtifactError, match=r"puzzles.per_family: 40 there, 41 now"):
        collect.run(mini(**{"puzzles.per_family": 41}), finished)


# --- What benchmarks ask stays out


@pytest.fixture
def bbh_folder(tmp_path):
    """A BBH file of 250 navigate questions; five of them are among the first training puzzles of seed 0."""
    options = dict(difficulties=(1, 2, 3), split="train")
    training = puzzles.make_puzzles("navigate", count=40, seed=0, **options)
    others = puzzles.make_puzzles("navigate", count=260, seed=99, **options)
    known = {puzzle.id for puzzle in training}
    chosen = training[3:8] + [puzzle for puzzle in others if puzzle.id not in known][:245]
    examples = [{"input": puzzle.question, "target": puzzle.target} for puzzle in chosen]
    folder = tmp_path / "bbh"
    folder.mkdir()
    (folder / "navigate.json").write_text(json.dumps({"examples": examples}))
    return folder


def test_questions_of_a_bbh_folder_never_reach_training(bbh_folder, mini, tmp_path):
    config = mini(
        bbh_folder=str(bbh_folder), **{"puzzles.families": ("navigate",), "puzzles.difficulties": (1, 2, 3)}
    )
    manifest = collect.make_queries(config, tmp_path / "workdir")
    assert manifest["counts"] == {"queries": 35, "known_to_benchmark": 5}
    asked = {query.text for query in queries(tmp_path / "workdir")}
    assert not asked & set(collect.bbh_texts(str(bbh_folder)))
    unfiltered, _ = collect.training_puzzles(config.puzzles, config.seed)
    assert len({puzzle.question for puzzle in unfiltered} & set(collect.bbh_texts(str(bbh_folder)))) == 5


def test_no_folder_no_questions():
    assert collect.bbh_texts("") == []
    config = PuzzlesConfig(families=("navigate",), per_family=5)
    made, known = collect.training_puzzles(config, 0)
    assert (len(made), known) == (5, 0)


# --- Teachers in files


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TeacherConfig(name="gpt4", kind="file", path=str(path))


def test_a_file_teachers_traces(tmp_path, mini):
    rows = [
        {"id": "cot.1", "system_prompt": "", "question": "1 + 1?", "response": "2"},
        {
            "id": "cot.2",
            "system_prompt": system_messages.get(7).text,
            "question": "2 + 2?",
            "response": "So, 4.",
        },
    ]
    teacher = write_rows(tmp_path / "rows.jsonl", rows)
    manifest = collect.collect(mini(), teacher, tmp_path / "workdir")
    found = traces(tmp_path / "workdir", "gpt4")
    assert manifest["counts"] == {"traces": 2}
    assert [trace.answer for trace in found] == ["2", "So, 4."]
    assert [trace.system_message_id for trace in found] == [1, 7]
    assert {trace.teacher for trace in found} == {"gpt4"}


def test_a_changed_file_is_noticed(tmp_path, mini):
    row = {"id": "cot.1", "system_prompt": "", "question": "1 + 1?", "response": "2"}
    teacher = write_rows(tmp_path / "rows.jsonl", [row])
    collect.collect(mini(), teacher, tmp_path / "workdir")
    write_rows(tmp_path / "rows.jsonl", [row, row | {"id": "cot.2"}])
    with pytest.raises(ArtifactError, match="file: "):
        collect.collect(mini(), teacher, tmp_path / "workdir")


def test_a_row_that_cannot_be_read_is_named(tmp_path, mini):
    teacher = write_rows(tmp_path / "rows.jsonl", [{"id": "cot.1", "question": 5, "response": "2"}])
    with pytest.raises(RecordError, match=r"rows\.jsonl.*1"):
        collect.collect(mini(), teacher, tmp_path / "workdir")
    assert not (tmp_path / "workdir/traces/gpt4/manifest.json").exists()


def test_validation_is_the_same_queries_for_all_teachers(finished, mini):
    config = mini()
    held = {
        name: {trace.query_id for trace in traces(finished, name) if prepare.held_out(trace, config)}
        for name in ("apprentice", "expert")
    }
    assert held["expert"]
    assert held["expert"] == held["apprentice"] & {trace.query_id for trace in traces(finished, "expert")}


# --- A student as the teacher


def taught(mini, finished):
    """A config whose only teacher is the finished student."""
    teacher = TeacherConfig(name="student", kind="student", path=str(finished), max_tokens=8, share=0.2)
    stage = StageConfig(name="student", datasets={"student": 1.0})
    return dataclasses.replace(mini(), teachers=(teacher,), curriculum=(stage,))


def test_a_student_teaches(finished, mini, tmp_path):
    collect.run(taught(mini, finished), tmp_path)
    made = traces(tmp_path, "student")
    student = students.local(students.open_source(finished), batch_size=4)
    asked = [trace.messages[:-1] for trace in made]
    replies = student.answer(asked, made[0].sampling)
    assert [(trace.answer, trace.outcome) for trace in made] == [(r.text, r.outcome) for r in replies]
    assert all(trace.teacher == "student" and trace.usage.completion_tokens <= 8 for trace in made)


def test_what_a_student_said_is_not_asked_again(finished, mini, tmp_path, monkeypatch):
    config = taught(mini, finished)
    collect.run(config, tmp_path)
    before = traces(tmp_path, "student")
    shutil.rmtree(tmp_path / "traces")
    monkeypatch.setattr(StudentEndpoint, "reply", None)
    collect.run(config, tmp_path)
    assert traces(tmp_path, "student") == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "student"}, "kind 'student' needs a path"),
        ({"kind": "file"}, "kind 'file' needs a path"),
        ({"path": "x"}, "kind 'oracle' takes no path"),
        ({"kind": "student", "path": "x", "max_tokens": 0}, "max_tokens=0 must be at least 1"),
    ],
)
def test_a_teacher_without_what_its_kind_needs_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        TeacherConfig(name="t", **given)
