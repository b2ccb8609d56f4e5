"""Every key of a config counts in a fingerprint, or stands in a tuple of keys that change no number.

Each leaf of three configs is changed, and all programs are run on a workdir that they have finished. One must
refuse it and name the key, or the key is excluded and nothing happens. What takes long, training and
replies, is replaced: what is tested is what the programs decide.
"""

import dataclasses
import json
import re
import shutil
import types
import typing

import pytest

from orca_jax import artifacts, compiler_options
from orca_jax import config as config_module
from orca_jax.artifacts import plain
from orca_jax.config import ExperimentConfig, TrainConfig, load
from orca_jax.config_check import ConfigError
from orca_jax.configs import api as api_file
from orca_jax.configs import mini as mini_file
from orca_jax.configs import openorca as openorca_file
from orca_jax.evaluation import run as evaluation_run
from orca_jax.experiments import collect, evaluate, prepare, train
from orca_jax.records import Outcome, Reply
from orca_jax.training import run as training_run
from orca_jax.training import students
from tests.teachers.server import Server, completion

SMALL = {
    "puzzles.per_family": 12,
    "student.hidden_size": 8,
    "student.intermediate_size": 8,
    "student.num_layers": 1,
    "student.num_heads": 2,
    "student.num_kv_heads": 2,
    "student.head_dim": 4,
    "student.vocab_size": 384,
    "evaluation.per_family": 1,
}
NAMES = ("mini", "openorca", "api")
# Values that no rule finds. `{path}` is a finished workdir of the same config.
OTHER = {
    "student.init": "{path}",
    "data.tokenizer": "{path}/tokenizer",
    "data.layout": "llama2",
    "curriculum[1].on_policy": {"rounds": 1},
    "compiler_options": {"xla_llvm_disable_expensive_passes": "true"},
    "teachers[0].path": "{path}/../other.jsonl",
    "benchmarks.own_prompts": "{path}/../others.jsonl",
    "teachers[0].api.endpoints[0].base_url": "http://127.0.0.1:1/v1",
    "teachers[1].api.endpoints[0].base_url": "http://127.0.0.1:1/v1",
    "teachers[0].api.endpoints[0].key_variable": "TEACHER_KEY",
    "teachers[1].api.endpoints[0].key_variable": "TEACHER_KEY",
}
# Keys without a second valid value, and why.
ALONE = {
    "openorca teachers[].kind": "a file's path is of no other kind",
    "api teachers[].kind": "a section must go with it",
    "teachers[].name": "the curriculum names it too",
    "teachers[].api": "a section, which the kind must go with",
    "teachers[].columns": "a section; tests/experiments/test_teachers_in_columns.py changes it",
    "teachers[].path": "an oracle and an API have none",
    "teachers[].samples": "an API has its own, and a file none",
    "teachers[].scorer": "needs data.top_logprobs; tests/experiments/test_distillation.py has both",
    "curriculum[].distill_weight": "needs data.top_logprobs, of which the traces have none",
    "teachers[].api.batch": "the server of this test has no Batch API",
    "curriculum[].on_policy": "the first stage's teacher leaves steps out, or is a file",
    "student.lora.rank": "needs student.init",
    "student.lora.base_dtype": "needs student.lora.rank",
    "openorca train.evaluate_every": "needs puzzles",
    "flan": "needs FLAN's files; tests/experiments/test_queries.py has some",
    "plugins": "needs a file; tests/test_plugins.py has some",
    "curriculum[].kind": "a plugin's; tests/test_plugins.py has one",
    "choices": "needs a file; tests/evaluation/benchmarks/test_choices.py has some",
    "benchmarks.": "needs a benchmark's file; own_prompts stands for all",
}
# Keys that nothing reads in a config.
UNUSED = {"mini": (), "openorca": ("puzzles.",), "api": ()}
# What the error names in place of the key.
NAMED = {
    "student.preset": "student.hidden_size",
    "student.init": "source",
    "student.vocab_size": "vocab_size",
    "data.tokenizer": "source",
    "teachers[].api.identity": "identity",
    "teachers[].api.endpoints[].model": "identity",
}


def mini(folder):
    return {}, mini_file.get_config("runlocal")


def openorca(folder):
    """One trace file; the stage ends at a plateau."""
    rows = [
        {
            "id": f"flan.{n}",
            "system_prompt": "Be kind.",
            "question": f"What is {n} + {n}?",
            "response": f"It is {2 * n}.",
        }
        for n in range(60)
    ]
    for name, count in (("traces.jsonl", 60), ("other.jsonl", 50)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    config = openorca_file.get_config("runlocal")
    config.teachers[0]["path"] = str(folder / "traces.jsonl")
    config.curriculum[0]["until_plateau"] = 2
    config.benchmarks = {**config.benchmarks, "own_prompts": str(folder / "prompts.jsonl")}
    return {"student.vocab_size": 300, "data.validation_fraction": 0.2}, config


def api(folder):
    return {}, api_file.get_config("runlocal")


CONFIGS = {"mini": mini, "openorca": openorca, "api": api}


class NoTrainer:
    """In the place of training."""

    def __init__(self, *_, curriculum, **__):
        self.curriculum = types.SimpleNamespace(total_steps=curriculum.total_steps, ended={})

    def run(self):
        return {}


def no_replies(questions, *_, **__):
    return [Reply(Outcome.OK, "(A)") for _ in questions]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "Trainer", NoTrainer)
        patch.setattr(evaluation_run, "collect_replies", no_replies)
        patch.setenv("TEACHER_KEY", "sk-0123456789")
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """`finished(name)`: the values of a config, and its finished workdir."""
    made, folder = {}, tmp_path_factory.mktemp("finished")
    for file, question in (("prompts", "Who?"), ("others", "When?")):
        (folder / f"{file}.jsonl").write_text(json.dumps({"question": question}) + "\n")

    def make(name):
        if name not in made:
            changes, config = CONFIGS[name](folder)
            config.update_from_flattened_dict(SMALL | changes)
            with Server(lambda call: completion(f"re {call.question}")) as server:
                for teacher in config.teachers if name == "api" else ():
                    teacher["api"]["endpoints"][0]["base_url"] = server.url
                values = json.loads(config.to_json_best_effort())
                run(load(values), folder / name)
            made[name] = values, folder / name
        return made[name]

    return make


def run(config, workdir):
    for program in (collect, prepare, train, evaluate):
        program.run(config, workdir)


def state(workdir):
    """The artifacts, with when each was finished."""
    return {
        str(path.parent.relative_to(workdir)): path.stat().st_mtime_ns
        for path in workdir.rglob(artifacts.MANIFEST)
    }


def leaves(value, path=()):
    """The places of all values; a list of such that are no sections is one value."""
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from leaves(entry, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for number, entry in enumerate(value):
            yield from leaves(entry, (*path, number))
    else:
        yield path


def shown(path, number="[{}]"):
    """`("curriculum", 0, "steps")` as `curriculum[0].steps`."""
    return "".join(number.format(k) if isinstance(k, int) else f".{k}" for k in path).removeprefix(".")


def changed(values, path, value):
    values = json.loads(json.dumps(values))
    part = values
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return values


def others(value, values):
    """Values of the same kind, likely ones first."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value * 2, 1, 2)
    elif isinstance(value, float):
        yield from (value / 2, value + 0.25, value * 1.5, value + 2.0)
    elif isinstance(value, str):
        yield value + "x"
    elif isinstance(value, list):
        yield from ([*value, *value[-1:]], value[:-1], list(value[::-1]), ["navigate"], ["refusal"], [1])
    elif isinstance(value, dict):
        yield from ({"x": "1"}, {values["teachers"][0]["name"]: 1.0})


def alone(name, general):
    return any(f"{name} {general}".startswith(key) or general.startswith(key) for key in ALONE)


def another(values, path, folder):
    """The config with another valid value in one place; None: there is none."""
    before = values
    for key in path:
        before = before[key]
    general = shown(path, "[]")
    if shown(path) not in OTHER and alone(folder.name, general):
        return None
    other = OTHER.get(shown(path))
    other = other.format(path=folder) if isinstance(other, str) else other
    candidates = others(before, values) if other is None else [other]
    for value in candidates:
        for one in (value, *choices(values, path, value)):
            try:
                config = load(changed(values, path, one))
            except ConfigError:
                continue
            if plain(config) != plain(load(values)):
                return config
    return None


def choices(values, path, value):
    """The choices that the error names; the last ones are unlike the default."""
    try:
        load(changed(values, path, value))
    except ConfigError as error:
        said = str(error).partition(" must be ")[2].partition(", got ")[0]
        return [choice.strip("'") for choice in said.replace(" or ", ", ").split(", ") if "'" in choice][::-1]
    return []


def excluded(config, path):
    """Whether the key, or a section it is in, stands in a tuple beside its dataclass."""
    kind = ExperimentConfig
    for key in path:
        if isinstance(key, int):
            continue
        out = {*getattr(kind, "NO_NUMBER", ()), *getattr(kind, "LISTS", ())}
        if kind is TrainConfig and not any(stage.until_plateau for stage in config.curriculum):
            out |= {*TrainConfig.PLATEAU}
        if kind is TrainConfig and all(stage.plateau_of == "loss" for stage in config.curriculum):
            out |= {*TrainConfig.EVALUATED}
        if key in out:
            return True
        if not dataclasses.is_dataclass(kind):
            return False
        hint = typing.get_type_hints(kind)[key]
        kind = next((one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)), hint)
    return False


def outcome(config, workdir):
    """What refuses, and the artifacts that are made or made again."""
    before, error = state(workdir), ""
    try:
        run(config, workdir)
    except (artifacts.ArtifactError, ValueError) as refused:
        error = str(refused)
    after = state(workdir)
    return error, {name for name in {*before, *after} if before.get(name) != after.get(name)}


def names(error, path):
    """Whether the error names the key with what it was and is."""
    key = NAMED.get(shown(path, "[]"), path[-1])
    return re.search(rf"(^|[ .(]){re.escape(str(key))}(\[\d+\]|\.\w+)*: .* there, .* now", error)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_refused_by_name_or_excluded(name, finished, tmp_path):
    values, folder = finished(name)
    workdir, wrong = tmp_path / "workdir", {}
    shutil.copytree(folder, workdir)
    for path in leaves(json.loads(json.dumps(plain(load(values))))):
        config = another(values, path, folder)
        general = shown(path, "[]")
        if config is None:
            if not alone(name, general):
                wrong[shown(path)] = "has no second valid value"
            continue
        error, made = outcome(config, workdir)
        if excluded(config, path):
            if error or made - {n for n in made if n.startswith("evaluation/")}:
                wrong[shown(path)] = f"is excluded, but: {error or made}"
        elif any(general.startswith(key) for key in UNUSED[name]):
            if error or made:
                wrong[shown(path)] = f"is not used, but: {error or made}"
        elif not error:
            wrong[shown(path)] = f"changes nothing, {made} made"
        elif not names(error, path):
            wrong[shown(path)] = f"is not named: {error}"
        if made:
            shutil.rmtree(workdir)
            shutil.copytree(folder, workdir)
    assert not wrong, "\n".join(f"{key} {why}" for key, why in wrong.items())


@pytest.mark.parametrize("kind", [k for k in vars(config_module).values() if isinstance(k, type)])
def test_tuples_beside_a_dataclass_name_its_keys(kind):
    tuples = {
        name: value for name, value in vars(kind).items() if name.isupper() and isinstance(value, tuple)
    }
    if tuples:
        known = {field.name for field in dataclasses.fields(kind)}
        assert set().union(*tuples.values()) <= known


# What is made again while nothing is trained on it; all else is left.
EVERYTHING = {"tokenizer", "tokens", "cards"}
MADE_AGAIN = {
    "teachers[].filters": {"quality", *EVERYTHING},
    "teachers[].shots": {"quality", *EVERYTHING},
    "data.tokenizer": {"tokenizer"},  # with the same ids
    "data.layout": EVERYTHING,
    "data.validation_fraction": EVERYTHING,
    "data.supervise": {"tokens", "cards"},
    "data.top_logprobs": {"tokens", "cards"},
    "data.row_length": {"cards"},
    "data.max_segments": {"cards"},
    "data.overlong": {"cards"},
    "student.vocab_size": EVERYTHING,
    "student.init": {"tokenizer"},  # the same one
}


def test_before_training_what_depends_on_a_key_is_made_again(finished, tmp_path):
    values, folder = finished("mini")
    workdir, later = tmp_path / "workdir", shutil.ignore_patterns("training", "evaluation")
    shutil.copytree(folder, workdir, ignore=later)
    for path in leaves(json.loads(json.dumps(plain(load(values))))):
        config, before = another(values, path, folder), state(workdir)
        try:
            for program in (collect, prepare) if config else ():
                program.run(config, workdir)
        except artifacts.ArtifactError:
            continue  # the traces are refused, which may have cost much
        made = {name for name, finished in state(workdir).items() if before.get(name) != finished}
        kinds = MADE_AGAIN.get(shown(path, "[]"), set())
        assert {name.partition("/")[0] for name in made} == kinds, (shown(path), made)
        if "quality" in kinds:
            teacher = values["teachers"][path[1]]["name"]
            assert {name for name in made if name.startswith("quality")} == {f"quality/{teacher}"}
        if made:
            shutil.rmtree(workdir)
            shutil.copytree(folder, workdir, ignore=later)


def plateau(finished, tmp_path, every):
    """A config whose stage ends at a plateau, its finished copy, and the same validated more often."""
    values, folder = finished("openorca")
    shutil.copytree(folder, tmp_path / "workdir")
    now = load(changed(values, ("train", "validate_every"), every))
    return values, now, tmp_path / "workdir"


def test_validations_count_where_a_stage_ends_at_a_plateau(finished, tmp_path):
    values, now, workdir = plateau(finished, tmp_path, 7)
    error, _ = outcome(now, workdir)
    assert "training was made with other settings (train.validate_every: 20 there, 7 now)" in error
    to_the_end = changed(values, ("curriculum", 0, "until_plateau"), 0)
    for part in ("training", "evaluation"):
        shutil.rmtree(workdir / part)
    run(load(to_the_end), workdir)
    assert outcome(load(changed(to_the_end, ("train", "validate_every"), 7)), workdir) == ("", set())


def test_a_plateau_trained_before_validations_counted_had_the_default(finished, tmp_path):
    values, now, workdir = plateau(finished, tmp_path, 0)
    path = workdir / "training" / artifacts.MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["provenance"]["train"]["validate_every"]
    path.write_text(json.dumps(manifest | {"fingerprint": "of then"}))
    before = state(workdir)
    train.run(now, workdir)
    assert state(workdir) == before
    with pytest.raises(artifacts.ArtifactError, match=r"validate_every: 0 there, 20 now \(absent there"):
        train.run(load(values), workdir)


@pytest.mark.parametrize("second", [{"base_url": "http://127.0.0.1:1/v1"}, {"parameters": {"seed": 1}}])
def test_another_endpoint_counts_by_its_parameters_alone(finished, tmp_path, second):
    values, folder = finished("api")
    shutil.copytree(folder, tmp_path / "workdir")
    one = values["teachers"][0]["api"]["endpoints"][0]
    now = load(changed(values, ("teachers", 0, "api", "endpoints"), [one, one | second]))
    error, made = outcome(now, tmp_path / "workdir")
    assert not made
    assert ("api.endpoints[1]: absent there" in error) == ("parameters" in second)


def test_automatic_options_are_those_the_run_began_with(finished, tmp_path, monkeypatch):
    """On another platform, or with another XLA, the run is the same one; in a config's table they count."""
    values, folder = finished("mini")
    assert values["compiler_options"] == "auto"
    shutil.copytree(folder, tmp_path / "workdir")
    workdir, before = tmp_path / "workdir", state(tmp_path / "workdir")
    table = artifacts.read_manifest(workdir / "training")["provenance"]["compiler_options"]
    assert table == compiler_options.FASTEST["cpu"]
    monkeypatch.setattr(compiler_options, "FASTEST", {})
    assert outcome(load(values), workdir) == ("", set())
    assert outcome(load(values | {"compiler_options": table}), workdir) == ("", set())
    error, _ = outcome(load(values | {"compiler_options": {}}), workdir)
    assert "compiler_options.xla_cpu_experimental_ynn_fusion_type" in error
    without(workdir / "training" / artifacts.MANIFEST, "compiler_options")  # of a time before the key
    train.run(load(values), workdir)
    assert state(workdir).keys() == before.keys()


def elsewhere(finished, monkeypatch):
    """A config's values, and a student that does not say its layout, as one of a model folder may not."""
    values, folder = finished("mini")
    source = dataclasses.replace(students.open_source(folder), layout="")
    monkeypatch.setattr(students, "open_source", lambda path: source)
    return values, folder


def without(manifest, *keys):
    """A manifest as it was before it had these keys."""
    kept = json.loads(manifest.read_text())
    for key in keys:
        del kept["provenance"][key]
    manifest.write_text(json.dumps(kept | {"fingerprint": "of then"}))


def test_the_layout_of_another_student_counts_in_its_evaluation(finished, tmp_path, monkeypatch):
    values, folder = elsewhere(finished, monkeypatch)
    options = evaluation_run.Options(model=str(folder))
    evaluate.run(load(values), tmp_path, options)
    for path in tmp_path.rglob(artifacts.MANIFEST):
        without(path, "layout", "compiler_options")
    evaluate.run(load(values), tmp_path, options)
    shutil.rmtree(tmp_path / "evaluation")
    evaluate.run(load(values), tmp_path, options)
    now = load(changed(values, ("data", "layout"), "vicuna"))
    with pytest.raises(artifacts.ArtifactError, match="layout: 'orca' there, 'vicuna' now"):
        evaluate.run(now, tmp_path, options)


def test_the_layout_of_a_student_counts_in_its_traces(finished, tmp_path, monkeypatch):
    values, folder = elsewhere(finished, monkeypatch)
    monkeypatch.setattr(collect.collection, "traces", lambda *_: iter(()))
    taught = changed(values, ("teachers", 0), {"name": "apprentice", "kind": "student", "path": str(folder)})
    collect.run(load(taught), tmp_path)
    collect.run(load(taught), tmp_path)
    now = load(changed(taught, ("data", "layout"), "vicuna"))
    with pytest.raises(artifacts.ArtifactError, match="layout: 'orca' there, 'vicuna' now"):
        collect.run(now, tmp_path)


def test_of_evaluations_only_the_new_one_is_made(finished, tmp_path):
    values, folder = finished("mini")
    shutil.copytree(folder, tmp_path / "workdir")
    now = load(changed(values, ("evaluation", "messages"), [1, 7, 8]))
    assert outcome(now, tmp_path / "workdir") == ("", {"evaluation/puzzles-message-8"})
