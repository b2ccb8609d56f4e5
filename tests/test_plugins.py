"""Plugins: the examples of docs/extending.md, and what a wrong plugin is told."""

import asyncio
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest

from orca_jax import artifacts, cli, plugins
from orca_jax.config import load
from orca_jax.config_check import ConfigError
from orca_jax.config_teachers import TeacherConfig
from orca_jax.configs import mini
from orca_jax.data import layouts, tokens
from orca_jax.data.packing import make_plan
from orca_jax.evaluation import cells, scoring
from orca_jax.evaluation.benchmarks import registry
from orca_jax.experiments import collect, prepare
from orca_jax.queries.puzzles import make_puzzles
from orca_jax.records import Message, Outcome, Reply, Sampling
from orca_jax.teachers import collection
from orca_jax.training import curriculum, students
from orca_jax.training import run as training_run

NAMES = ("brackets", "sums", "terse", "majority", "handover")
ASKED = [Message("user", "What?"), Message("assistant", "That.")]


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """Each test begins and ends without plugins."""
    monkeypatch.setattr(plugins, "folder", plugins.folder)
    yield
    for place in list(plugins._loaded):
        plugins._forget(place)


@pytest.fixture
def examples(repo, tmp_path):
    """A copy of the examples, which a test may change."""
    return shutil.copytree(repo / "docs/examples", tmp_path / "examples", ignore=lambda *_: ["__pycache__"])


@pytest.fixture
def config(examples):
    """The example's config, as a program loads it."""

    def load_own(*keys):
        program = cli.Program("Does one thing.", cli.CONFIG)
        program.start([f"--config={examples}/own.py", *(f"--config.{key}" for key in keys)])
        return program.given.config

    return load_own


def write(folder, name, text):
    (folder / name).write_text("from orca_jax import plugins\n" + text, encoding="utf-8")
    return str(folder / name)


# What a plugin may register


def test_a_layout_is_encoded_as_ours_and_in_workers_too(examples, tokenizer):
    plugins.load([f"{examples}/brackets.py"])
    found = layouts.encode(ASKED, "brackets", tokenizer)
    prompt = layouts.encode(ASKED[:1], "brackets", tokenizer)
    assert found.tokens[: len(prompt.tokens)].tolist() == prompt.tokens.tolist()
    assert (found.weights > 0).sum() == len(found.tokens) - len(prompt.tokens)
    known = "__import__('orca_jax.plugins').plugins.LAYOUTS.names[-1]"
    assert list(tokens.in_processes(2, eval, [known, known])) == ["brackets", "brackets"]


def test_a_benchmark_is_asked_parsed_counted_and_kept_out_of_training(examples):
    plugins.load([f"{examples}/sums.py"])
    path = examples / "sums.jsonl"
    asked = registry.questions("sums", path, mode="last_number")
    replies = [Reply(Outcome.OK, text) for text in ("2 + 3 = 5", "I say 41", "none")]
    items = scoring.score(asked, replies, seed=0, mode="last_number", system_message_id=1)
    assert [(item.answer, item.correct) for item in items] == [("5", True), ("41", False), (None, False)]
    assert next(registry.documents({"sums": path})).text == "What is 2 + 3?"
    with pytest.raises(ValueError, match=r"sums has no mode 'orca'; its modes: last_number, robust"):
        registry.questions("sums", path, mode="orca")
    with pytest.raises(ValueError, match=r"unknown benchmark 'sum'; known: .*, sums"):
        registry.questions("sum", path, mode="orca")
    assert cells.of_items(items).of is None


def test_sizes_of_a_benchmark_mark_a_part(tmp_path):
    text = "plugins.benchmark('own', list, list, modes=['robust'], sizes={'a': 7})"
    plugins.load([write(tmp_path, "own.py", text)])
    assert cells.published_size("own", "a", "robust", 3) == 7
    assert cells.published_size("own", "b", "robust", 3) is None


def test_puzzles_are_made_and_solved(examples):
    plugins.load([f"{examples}/majority.py"])
    made = make_puzzles("majority", difficulties=(1, 3), count=20, seed=0, split="train")
    assert {puzzle.target for puzzle in made} == {"a", "b"}
    assert all(puzzle.steps[-1].endswith(f"{puzzle.target}.") for puzzle in made)


def test_a_curriculum_moves_shares_and_rate(config):
    stage = config("curriculum[0].steps=40").curriculum[0]
    plan = make_plan(np.full(4000, 512), row_length=512, max_segments=1, seed=0, epoch=0)
    made = curriculum.Curriculum([stage], lambda name, epoch: plan, batch_rows=32, seed=0)
    drawn = [[row.dataset for row in made.position(step).rows].count("terse") for step in range(40)]
    assert sum(drawn[:20]) == pytest.approx(0.9 * 640, abs=4)
    assert sum(drawn[20:]) == pytest.approx(0.1 * 640, abs=4)
    rates = [made.position(step).learning_rate / stage.learning_rate for step in (1, 20, 39)]
    assert rates == [1, 0.5, 0.25]


def test_weights_of_other_data_sets_are_refused(tmp_path, config):
    text = "plugins.curriculum('odd', weights=lambda stage, done: {'nobody': 1.0})"
    plugins.load([write(tmp_path, "odd.py", text)])
    stage = dataclasses.replace(config().curriculum[0], kind="odd")
    with pytest.raises(
        ValueError, match=r"'odd' gives the weights .*'nobody'.* of stage 'both'.*terse, expert"
    ):
        curriculum.shares(stage, 0.5)


def test_a_teacher_answers_and_its_identity_changes_with_its_source_and_settings(config, examples, tmp_path):
    own = config()
    collect.queries(own, tmp_path)

    def answering(teacher):
        return collection.endpoint(collection.Job(own, teacher, tmp_path))

    first, teacher = answering(own.teachers[0]), own.teachers[0]
    query = next(collection.Job(own, teacher, tmp_path).queries())
    reply = asyncio.run(first.reply([Message("user", query.text)], Sampling()))
    assert reply.text == f"Tersely: {query.target}"
    assert answering(teacher).identity == first.identity
    assert answering(dataclasses.replace(teacher, error_rate=0.5)).identity != first.identity
    with open(examples / "terse.py", "a") as file:
        file.write("# changed\n")
    plugins.load(own.plugins)
    assert answering(teacher).identity != first.identity
    assert TeacherConfig(name="a", kind="terse", path="asked.json", samples=2).asked == 2


# What is made with a plugin depends on its source


def test_a_changed_plugin_changes_what_was_made_with_it_and_nothing_else(config, examples, tmp_path):
    workdir = tmp_path / "workdir"
    asked = make_puzzles_of(config(), "majority")[0].question
    with open(examples / "sums.jsonl", "a") as file:
        file.write(json.dumps({"question": asked, "answer": "0"}) + "\n")

    def run():
        for program in (collect, prepare):
            program.run(config(), workdir)
        return {
            path.parent.relative_to(workdir).as_posix(): path.stat().st_mtime_ns
            for path in workdir.rglob(artifacts.MANIFEST)
        }

    before = run()
    assert artifacts.read_manifest(workdir / "queries")["counts"]["known_to_benchmark"] == 1
    assert "- teacher terse: terse\n" in (workdir / "cards/terse/README.md").read_text()
    manifest = artifacts.read_manifest(workdir / "tokens/terse")
    assert manifest["plugins"] == {"brackets": f"{examples}/brackets.py"}
    made = training_run.provenance(students.to_prepare(config()), config().student)
    assert set(made["plugins"]) == {"brackets", "handover"}
    with open(examples / "brackets.py", "a") as file:
        file.write("# changed\n")
    after = run()
    changed = {name.partition("/")[0] for name in before if before[name] != after[name]}
    assert changed == {"tokens", "tokenizer", "cards"}
    with open(examples / "terse.py", "a") as file:
        file.write("# changed\n")
    with pytest.raises(
        artifacts.ArtifactError, match=r"traces/terse was made with .*plugins.terse: .* there"
    ):
        run()


def make_puzzles_of(config, family):
    own = config.puzzles
    return make_puzzles(
        family, difficulties=own.difficulties, count=own.per_family, seed=config.seed, split="train"
    )


def test_a_student_is_opened_with_the_plugin_of_its_layout(examples):
    place = f"{examples}/brackets.py"
    plugins.load([place])
    made = {"layout": "brackets", **plugins.provenance((plugins.LAYOUTS, "brackets"))}
    manifest = {"provenance": made, "plugins": plugins.places(made)}
    plugins._forget("brackets")
    plugins.reopen_layout("w", manifest)
    assert "brackets" in layouts.LAYOUTS
    with open(place, "a") as file:
        file.write("# changed\n")
    plugins.load([place])
    with pytest.raises(ConfigError, match=r"another source of layout 'brackets'"):
        plugins.reopen_layout("w", manifest)
    plugins._forget("brackets")
    (examples / "brackets.py").unlink()
    with pytest.raises(ConfigError, match=r"w has the layout 'brackets'.*no plugin .*brackets.py.*--plugins"):
        plugins.reopen_layout("w", manifest)


# Where plugins are, and what is wrong with them


def test_places_are_relative_to_the_config_file_and_written_out(repo, tmp_path, monkeypatch):
    shutil.copy(repo / "docs/examples/brackets.py", tmp_path)
    text = (
        "from orca_jax.configs.mini import get_config as mini\ndef get_config():\n    c = mini('runlocal')\n"
    )
    text += "    c.plugins, c.data.layout = ['brackets.py'], 'brackets'\n    return c\n"
    (tmp_path / "own.py").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    program = cli.Program("Does one thing.", cli.CONFIG)
    program.start(["--config=../own.py"])
    assert program.given.config.plugins == ("../brackets.py",)


def test_a_module_is_a_plugin_too_and_all_of_a_package_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "own_plugins"
    package.mkdir()
    write(package, "__init__.py", "from own_plugins import more\nplugins.layout('own', more.own)\n")
    (package / "more.py").write_text("def own(messages): return []\n")
    plugins.load(["own_plugins"])
    before = plugins.provenance((plugins.LAYOUTS, "own"))["plugins"]
    (package / "more.py").write_text("def own(messages): return [1]\n")
    plugins.load(["own_plugins"])
    assert before.keys() == {"own_plugins"}
    assert plugins.provenance((plugins.LAYOUTS, "own"))["plugins"] != before
    del sys.modules["own_plugins"]


def test_options_take_names_of_plugins(examples, capsys):
    program = cli.Program("Does one thing.", cli.LAYOUT)
    program.start(["--layout=brackets", f"--plugins={examples}/brackets.py"])
    assert program.given.layout == "brackets"
    with pytest.raises(SystemExit):
        program.start(["--layout=brackts"])
    assert "--layout=brackts: unknown layout; known: orca, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = 1 / 0\n", "own.py:3 fails: ZeroDivisionError: division by zero"),
        ("def f(:\n", "own.py fails: SyntaxError"),
        (
            "plugins.layout('orca', list)",
            "own.py registers the layout 'orca', which is the name of one of orca",
        ),
        ("plugins.layout('a b', list)", "registers the layout 'a b': give it a name of letters"),
        ("plugins.layout('x', list)\nplugins.layout('x', list)", "'x', which .*own.py has registered"),
        ("plugins.benchmark('bbh', list, list, modes=['robust'])", "the benchmark 'bbh', which is the name"),
        (
            "plugins.benchmark('x', list, list, modes=['robst'])",
            "'x' needs known modes, got .*'robst'.*known: or",
        ),
        ("plugins.teacher('api', list)", "registers the kind of teacher 'api', which is the name"),
    ],
)
def test_a_wrong_plugin_is_named_and_leaves_nothing(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        plugins.load([write(tmp_path, "own.py", text)])
    assert not any(table.entries for table in plugins.Table.every)


def test_missing_plugins_and_names_of_none(tmp_path, examples):
    for place, message in (
        ("none.py", "no plugin none.py; its path"),
        ("no.such", "there is no such module"),
    ):
        with pytest.raises(ConfigError, match=message):
            load({"plugins": [place]})
    config = mini.get_config("runlocal").to_dict()
    with pytest.raises(ConfigError, match=r"'data.layout' must be '', 'orca', .* got 'brackets'"):
        load({**config, "data": {**config["data"], "layout": "brackets"}})
    plugins.load([f"{examples}/brackets.py"])
    other = write(tmp_path, "second.py", "plugins.layout('brackets', list)")
    with pytest.raises(
        ConfigError, match=r"second.py registers the layout 'brackets', which .*brackets.py has"
    ):
        plugins.load([other])
    same = write(tmp_path, "brackets.py", "plugins.layout('other', list)")
    with pytest.raises(ConfigError, match=r"two plugins are called 'brackets'"):
        plugins.load([same])
