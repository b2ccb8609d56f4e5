"""Rounds on policy: traces are mended where the student is wrong; a run that stops comes to the same."""

import itertools
import shutil
import signal

import jax
import numpy as np
import pytest

from orca_jax import artifacts, files
from orca_jax.config import load
from orca_jax.config_check import ConfigError
from orca_jax.configs.ablations import crossover
from orca_jax.data import loader
from orca_jax.experiments import collect, prepare, train
from orca_jax.queries.make import training_puzzles
from orca_jax.queries.puzzles.oracles import right_lines
from orca_jax.queries.system_messages import Style
from orca_jax.records import Outcome, Reply, Trace
from orca_jax.serving import on_policy
from orca_jax.serving.local import LocalStudent
from orca_jax.student.presets import shape
from orca_jax.teachers.limits import BudgetSpent
from orca_jax.training import metrics
from orca_jax.training.checkpoints import load_params
from orca_jax.training.curriculum import with_rounds
from tests.teachers.server import Server, completion
from tests.training import synthetic

ROUNDS, STEPS = 3, 6
SMALL = dict(num_layers=1, hidden_size=16, intermediate_size=16, num_heads=2, num_kv_heads=2)
RULES = dict(rounds=ROUNDS, questions=12, share=0.5, max_tokens=8)


def make(**changes):
    """A student of the crossover's, of two steps a round on the tests' eight devices."""
    stage = {**crossover.stage("teacher", STEPS), "on_policy": RULES}
    teacher = dict(name="teacher", message=7, shown=1, error_rate=0.5)
    values = crossover.base(teachers=[teacher], curriculum=[stage])
    values["student"].update(SMALL)
    values["puzzles"].update(difficulties=(2,), per_family=60)
    values["data"].update(row_length=64, validation_fraction=0.0)
    values["train"].update(batch_rows=8, evaluate_every=0, log_every=1, checkpoint_every=100)
    return load({**values, **changes})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("prepared")
    collect.run(make(), workdir)
    prepare.run(make(), workdir)
    return workdir


@pytest.fixture(scope="module", autouse=True)
def sometimes_right():
    """Every third reply is that of a student which has learnt the task, every third errs in its last line."""
    puzzles = {puzzle.question: puzzle for puzzle in training_puzzles(make().puzzles, 0)[0]}
    answer = LocalStudent.as_finished

    def as_finished(student, conversations, sampling):
        for index, reply in answer(student, conversations, sampling):
            puzzle = puzzles[conversations[index][-1].content]
            lines = [*puzzle.steps, puzzle.instance.closing(puzzle.target if index % 3 else "?")]
            yield index, Reply(Outcome.OK, "\n".join(lines)) if index % 3 < 2 else reply

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStudent, "as_finished", as_finished)
        yield


def copy(prepared, to):
    return shutil.copytree(prepared, to, symlinks=True)


@pytest.fixture(scope="module")
def unbroken(prepared, tmp_path_factory):
    workdir = copy(prepared, tmp_path_factory.mktemp("unbroken") / "run")
    train.run(make(), workdir)
    return workdir


def rounds(workdir):
    """The bytes of every file of the rounds."""
    every = (workdir / "training" / on_policy.FOLDER).rglob("*")
    return {str(path.relative_to(workdir)): path.read_bytes() for path in every if path.is_file()}


def records(workdir):
    rows = metrics.read(workdir / "training" / metrics.FILE)
    return [{k: v for k, v in row.items() if k not in metrics.TIMED} for row in rows]


def assert_same(workdir, unbroken):
    mine, theirs = (load_params(each / "training/checkpoints") for each in (workdir, unbroken))
    assert mine[0] == theirs[0] == STEPS
    jax.tree.map(np.testing.assert_array_equal, mine[1], theirs[1])
    assert rounds(workdir) == rounds(unbroken)
    assert records(workdir) == records(unbroken)


def test_traces_are_the_students_where_it_is_right_and_the_teachers_after_that(unbroken):
    config, seen = make(), []
    puzzles = {puzzle.question: puzzle for puzzle in training_puzzles(config.puzzles, 0)[0]}
    for number in range(ROUNDS):
        folder = unbroken / "training" / on_policy.FOLDER / str(number)
        replies = list(files.read_jsonl(folder / on_policy.REPLIES, Reply))
        traces = list(files.read_jsonl(folder / "traces.jsonl", Trace))
        assert len(traces) == len(replies) == RULES["questions"]
        seen += [trace.query_id for trace in traces]
        errs = 0
        for reply, trace in zip(replies, traces):
            puzzle = puzzles[trace.messages[1].content]
            found = right_lines(puzzle, Style.STEPS, reply.text)
            assert trace.messages[0].content == "", "the message that is shown"
            assert (trace.extra["kept_lines"], trace.extra["right"]) == (found.kept, found.whole)
            assert trace.answer.split("\n")[: found.kept] == [*found.lines[: found.kept]]
            errs += not right_lines(puzzle, Style.STEPS, trace.answer).whole
            assert trace.answer == reply.text or not found.whole
        right = sum(trace.extra["right"] for trace in traces)
        assert right == 4
        assert 0 < errs <= 8, "the teacher errs where it writes"
        row = next(row for row in records(unbroken) if row["kind"] == "round" and row["round"] == number)
        assert row["mended"] == round(1 - right / len(traces), 4)
        assert row["step"] == number * STEPS / ROUNDS
    assert len(set(seen)) == len(seen), "a question comes again when all have come"
    described = artifacts.read_manifest(unbroken / "training")["counts"]["data"]
    assert [described[f"round/{number}"]["examples"] for number in range(ROUNDS)] == [12] * ROUNDS


def interrupted(function, when):
    """The function, with Ctrl-C before the call for which `when` holds."""

    def stopping(*given, **options):
        if when(*given):
            signal.raise_signal(signal.SIGINT)
        return function(*given, **options)

    return stopping


def of_second_round(rounds, *given):
    return any(getattr(part, "number", 0) == 1 for part in given)


@pytest.mark.parametrize("moment", ["_mended", pytest.param("step", marks=pytest.mark.proof)])
def test_a_run_that_stops_comes_to_the_same_bytes(moment, prepared, unbroken, tmp_path, monkeypatch):
    """While replies are mended, which are not made again, and at the first step of the second round."""
    workdir, calls = copy(prepared, tmp_path / "run"), itertools.count(1)
    with monkeypatch.context() as patch:
        if moment == "step":
            third = interrupted(loader.on_devices, lambda *_: next(calls) == 3)
            patch.setattr(loader, "on_devices", third)
        else:
            stopping = interrupted(getattr(on_policy.Rounds, moment), of_second_round)
            patch.setattr(on_policy.Rounds, moment, stopping)
        with pytest.raises(KeyboardInterrupt):
            train.run(make(), workdir)
    there = workdir / "training" / on_policy.FOLDER / "1"
    assert (there / artifacts.MANIFEST).exists() == (moment == "step")
    before = stamps(workdir)
    assert there / on_policy.REPLIES in before
    train.run(make(), workdir)
    assert_same(workdir, unbroken)
    assert before.items() <= stamps(workdir).items(), "what was finished is not made again"


def stamps(workdir):
    found = [*(workdir / "training" / on_policy.FOLDER).rglob(on_policy.REPLIES)]
    return {path: path.stat().st_mtime_ns for path in found}


def test_a_round_that_is_gone_while_its_steps_are_made_is_named(prepared, unbroken, tmp_path):
    workdir = copy(unbroken, tmp_path / "run")
    (workdir / "training" / artifacts.MANIFEST).unlink()
    shutil.rmtree(there := workdir / "training" / on_policy.FOLDER / "2")
    with pytest.raises(artifacts.ArtifactError, match=f"{there} is gone or unfinished, and training is past"):
        train.run(make(), workdir)


def test_more_questions_than_there_are(prepared, tmp_path):
    workdir = copy(prepared, tmp_path / "run")
    stage = {**crossover.stage("teacher", STEPS), "on_policy": {**RULES, "questions": 61}}
    with pytest.raises(ValueError, match=r"'teacher': on_policy.questions=61, .* is trained on 60 puzzles"):
        train.run(make(curriculum=[stage]), workdir)


def test_an_api_goes_on_from_the_right_lines_and_is_paid_once(prepared, tmp_path, monkeypatch):
    pytest.importorskip("openai")
    workdir, puzzles = copy(prepared, tmp_path / "run"), training_puzzles(make().puzzles, 0)[0]
    (round,) = with_rounds([config_of_api("").curriculum[0]])[:1]

    def answer(call):
        puzzle = next(puzzle for puzzle in puzzles if call.question.startswith(puzzle.question))
        shown = call.question.removeprefix(puzzle.question).partition("nothing else.\n\n")[2]
        lines = [*puzzle.steps, puzzle.instance.closing(puzzle.target)]
        given = shown.split("\n") if shown else []
        assert given == lines[: len(given)]
        return completion("\n".join(lines[len(given) :]), (50, 20))

    with Server(answer) as server:
        rounds = on_policy.Rounds(config_of_api(server.url), *nobody(), workdir, "training")
        asked, replies = rounds.questions(round), []
        for number, one in enumerate(asked):  # right, wrong after `number` lines, or from the beginning
            steps = [*one.puzzle.steps[: number % 4], *(["It rains."] if number % 4 < 3 else [])]
            closing = one.puzzle.instance.closing(one.puzzle.target)
            replies.append(Reply(Outcome.OK, "\n".join([*steps, closing])))
        there = workdir / "training" / on_policy.FOLDER / "0"
        files.write_jsonl(there / on_policy.REPLIES, replies)
        store = rounds({}, round)
        traces = list(files.read_jsonl(there / "traces.jsonl", Trace))
        for one, trace in zip(asked, traces):
            assert right_lines(one.puzzle, Style.STEPS, trace.answer).whole
        assert [trace.extra["kept_lines"] for trace in traces] == [0, 1, 2, 3] * 3
        assert store.manifest["counts"]["replies"] == {
            "replies": 12, "mended": 0.75, "kept_lines": 1.5, "cut_off": 0.0
        }  # fmt: skip
        assert len(server.calls) == 9
        assert all(
            call.body["messages"][0]["content"].startswith("Carry out the task") for call in server.calls
        )
        first = (there / "traces.jsonl").read_bytes()
        for path in there.iterdir():
            if path.name != on_policy.REPLIES:
                path.unlink()
        rounds({}, round)
        assert len(server.calls) == 9, "the ledger has the answers"
        assert (there / "traces.jsonl").read_bytes() == first
        tight = on_policy.Rounds(config_of_api(server.url, budget_tokens=100), *nobody(), workdir, "training")
        files.write_jsonl(there / on_policy.REPLIES, [Reply(Outcome.OK, "It rains.")] * 12)
        (there / artifacts.MANIFEST).unlink()
        with pytest.raises(BudgetSpent):
            tight({}, round)


def config_of_api(url, **changes):
    """The same data set, whose teacher is behind an API."""
    end = dict(model="m", base_url=url or "http://127.0.0.1:9/v1", key_variable="")
    teacher = dict(name="teacher", kind="api", message=7, shown=1, api=dict(endpoints=[end], **changes))
    return make(teachers=[teacher])


def nobody():
    """A student's shape and a mesh."""
    return shape(make().student, 48), synthetic.mesh(1, 1, 1)


@pytest.mark.parametrize(("changes", "message"), [
    (dict(brevity=0.5), "must write all steps of puzzles: brevity=0, steps='own', reach of at least 2"),
    (dict(reach=1), "reach of at least 2"),
    (dict(steps="filler"), "must write all steps"),
    (dict(shots=2), "must have shots=0 and api.batch=False"),
    (dict(kind="file", path="t.jsonl"), "it needs puzzles, whose steps are checked, and an oracle or an API"),
])  # fmt: skip
def test_teachers_that_cannot_go_on_are_refused(changes, message):
    with pytest.raises(ConfigError, match=f"curriculum stage 'teacher' is on policy: .*{message}"):
        make(teachers=[dict(name="teacher", message=7, shown=1, **changes)])
