"""Queries under their system messages, and what is asked of whom."""

import dataclasses
import json
import shutil

import pytest

from orca_jax import cli, conversations, files
from orca_jax.artifacts import ArtifactError
from orca_jax.config import StageConfig
from orca_jax.config_check import build
from orca_jax.config_teachers import TeacherConfig
from orca_jax.data import prepared
from orca_jax.evaluation import run as evaluation_run
from orca_jax.experiments import collect
from orca_jax.queries import system_messages
from orca_jax.queries.make import QUERIES
from orca_jax.queries.puzzles.oracles import OracleTeacher
from orca_jax.records import Outcome, Query, RecordError, Trace
from orca_jax.serving.local import StudentEndpoint, load_student
from orca_jax.teachers import collection
from orca_jax.teachers.ledger import Ledger
from orca_jax.training import students


def queries(workdir):
    return list(files.read_jsonl(workdir / "queries" / QUERIES, Query))


def traces(workdir, teacher):
    return list(files.read_jsonl(workdir / "traces" / teacher / collect.TRACES, Trace))


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
    evaluated = evaluation_run.test_puzzles(mini())
    assert evaluated
    assert not {puzzle.id for puzzle in evaluated} & {query.id for query in queries(finished)}
    assert not {puzzle.question for puzzle in evaluated} & {query.text for query in queries(finished)}


def test_test_puzzles_of_another_seed_are_no_training_puzzles_either(finished, mini):
    evaluated = evaluation_run.test_puzzles(mini(**{"evaluation.seed": 3, "evaluation.per_family": 60}))
    assert not {puzzle.id for puzzle in evaluated} & {query.id for query in queries(finished)}


def test_test_puzzles_are_the_same_for_students_of_any_seed(mini):
    assert evaluation_run.test_puzzles(mini(seed=3)) == evaluation_run.test_puzzles(mini())


def test_a_teacher_may_be_asked_under_one_message_and_show_another(mini, tmp_path):
    teachers = [
        {"name": "told", "message": 7},
        {"name": "bare", "message": 1},
        {"name": "erased", "message": 7, "shown": 2},
    ]
    config = mini(teachers=teachers, curriculum=[{"name": "told", "datasets": {"told": 1.0}, "steps": 1}])
    collect.run(config, tmp_path)
    told, bare, erased = (traces(tmp_path, teacher["name"]) for teacher in teachers)
    for traced, message in ((told, 7), (bare, 1), (erased, 2)):
        assert {trace.system_message_id for trace in traced} == {message}
        assert {trace.messages[0].content for trace in traced} == {system_messages.get(message).text}
    for one, other in zip(told, erased):
        assert one.query_id == other.query_id
        assert "\n" in other.answer  # steps, as it was asked for under message 7
    assert all("\n" not in trace.answer for trace in bare)


def test_an_oracle_asked_several_times_errs_apart(mini, tmp_path):
    teachers = [{"name": "one", "error_rate": 0.5, "message": 7}]
    stage = [{"name": "one", "datasets": {"one": 1.0}, "steps": 1}]
    collect.run(mini(teachers=teachers, curriculum=stage), tmp_path / "once")
    collect.run(mini(teachers=[{**teachers[0], "samples": 3}], curriculum=stage), tmp_path / "thrice")
    once, thrice = (traces(tmp_path / name, "one") for name in ("once", "thrice"))
    assert [trace.sample for trace in thrice] == [0, 1, 2] * len(once)
    assert [trace.answer for trace in thrice[::3]] == [trace.answer for trace in once]
    alike = sum(one.answer == other.answer for one, other in zip(thrice[1::3], thrice[2::3]))
    assert 0 < alike < len(once) / 2


def test_filters_and_shots_are_no_setting_of_traces(mini):
    teacher = mini().teachers[0]
    changed = dataclasses.replace(teacher, shots=2, filters=("refusal",))
    assert collection.asked_as(changed) == collection.asked_as(teacher)


def paid(workdir):
    """What the ledger knows of every teacher."""
    with Ledger(workdir / "ledger.sqlite") as ledger:
        return ledger.status()


def test_collecting_again_asks_for_nothing(copied, finished, mini, monkeypatch):
    workdir = copied("traces")
    monkeypatch.setattr(OracleTeacher, "reply", None)
    collect.run(mini(), workdir)
    assert paid(workdir) == paid(finished)
    assert traces(workdir, "expert") == traces(finished, "expert")


def test_collected_again_the_traces_are_byte_for_byte_the_same(copied, finished, mini):
    workdir = copied("traces", "queries")
    collect.run(mini(), workdir)
    for name in ("traces/expert/traces.jsonl", "traces/apprentice/traces.jsonl", "queries/queries.jsonl"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()


def test_a_workdir_of_other_settings_is_refused_and_the_change_named(finished, mini):
    with pytest.raises(ArtifactError, match=r"puzzles.per_family: 40 there, 41 now"):
        collect.run(mini(**{"puzzles.per_family": 41}), finished)


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
    assert manifest["counts"] == {
        "traces": 2,
        "outcomes": {"ok": 2},
        "read": 2,
        "malformed": 0,
        "malformed_reasons": {},
        "malformed_places": [],
        "asks_a_benchmark": 0,
    }
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
        name: {
            trace.query_id for trace in traces(finished, name) if prepared.held_out(trace.query_id, config)
        }
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


@pytest.mark.proof
def test_a_student_teaches(finished, mini, tmp_path):
    collect.run(taught(mini, finished), tmp_path)
    made = traces(tmp_path, "student")
    student = load_student(students.open_source(finished), batch_size=4)
    asked = [trace.messages[:-1] for trace in made]
    replies = student.answer(asked, made[0].sampling)
    assert [(trace.answer, trace.outcome) for trace in made] == [(r.text, r.outcome) for r in replies]
    assert all(trace.teacher == "student" and trace.usage.completion_tokens <= 8 for trace in made)


@pytest.mark.proof
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
        ({"kind": "api"}, "kind 'api' needs `api` settings"),
        ({"kind": "api", "path": "x"}, "kind 'api' takes no path"),
        ({"kind": "student", "path": "x", "max_tokens": 0}, "'max_tokens' must be at least 1, got 0"),
        ({"kind": "student", "path": "x", "samples": 3}, "samples=3 must be 1; only an oracle's may be more"),
        ({"samples": 0}, "'samples' must be at least 1, got 0"),
        ({"shots": -1}, "'shots' must be at least 0, got -1"),
        ({"filters": ("spare",)}, "filter 'spare' needs several samples a query"),
    ],
)
def test_a_teacher_without_what_its_kind_needs_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        build(TeacherConfig, {"name": "t", **given})


# --- Export


def export_by_options(**options):
    defaults = dict(workdir="", input="", schema="", form="parquet", kept=False)
    collect.export(cli.Options(**{**defaults, **options}))


@pytest.mark.parametrize("schema", ["native", "openorca", "messages", "sharegpt"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_files(finished, tmp_path, schema, suffix):
    out = tmp_path / f"expert{suffix}"
    expected = list(prepared.read(finished, "expert"))
    assert collect.export_traces(finished / "traces/expert", schema, out) == len(expected)
    written = list(conversations.read_traces(out))
    assert [trace.id for trace in written] == [trace.id for trace in expected]
    assert [trace.answer for trace in written] == [trace.answer for trace in expected]
    assert (tmp_path / "expert-card/README.md").read_text().startswith("# expert")


def test_failed_requests_are_no_answers_in_a_schema_that_cannot_say_so(finished, tmp_path):
    first, second, *_ = prepared.read(finished, "expert")
    files.write_jsonl(tmp_path / "in.jsonl", [dataclasses.replace(first, outcome=Outcome.ERROR), second])
    assert collect.export_traces(tmp_path / "in.jsonl", "messages", tmp_path / "out.jsonl") == 1
    assert collect.export_traces(tmp_path / "in.jsonl", "native", tmp_path / "all.jsonl") == 2


def test_what_filters_kept(finished, tmp_path, capsys):
    out = tmp_path / "kept.jsonl"
    export_by_options(input=f"{finished}/traces/expert", out=out, kept=True)
    kept = [entry for entry in prepared.flagged(finished, "expert") if entry.left_out is None]
    assert f"{out}: {len(kept)} traces" in capsys.readouterr().out
    assert [trace.id for trace in files.read_jsonl(out, Trace)] == [entry.id for entry in kept]


def test_filters_that_were_not_applied_are_named(copied, tmp_path):
    workdir = copied("quality")
    with pytest.raises(RecordError, match=r"run experiments\.prepare first"):
        collect.export_traces(workdir / "traces/expert", "native", tmp_path / "x.jsonl", kept=True)


def test_the_columns_that_are_written_unless_named(finished, tmp_path):
    export_by_options(input=f"{finished}/traces/expert", out=tmp_path / "one.jsonl")
    export_by_options(workdir=finished, out=tmp_path / "all", form="jsonl")
    one, every = (
        json.loads(path.open().readline()) for path in (tmp_path / "one.jsonl", tmp_path / "all/expert.jsonl")
    )
    assert "outcome" in one
    assert "messages" in every
    assert "outcome" not in every


def test_a_form_that_is_not_known_is_named(finished):
    with pytest.raises(RecordError, match=r"unknown suffix; name it \.jsonl"):
        export_by_options(input=f"{finished}/traces/expert", out="x.csv")


def test_files_of_all_teachers_of_a_workdir(finished, tmp_path, capsys):
    export_by_options(workdir=finished, out=tmp_path / "out", form="jsonl")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "apprentice-card",
        "apprentice.jsonl",
        "expert-card",
        "expert.jsonl",
    ]
    assert f"{tmp_path}/out/apprentice.jsonl: " in capsys.readouterr().out


@pytest.mark.parametrize("given", [{}, {"workdir": "w", "input": "t"}])
def test_export_is_of_a_workdir_or_of_an_input(given):
    with pytest.raises(ArtifactError, match="give one of --workdir and --input"):
        export_by_options(out="x", **given)
