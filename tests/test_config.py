"""A config's dictionary becomes dataclasses, or an error that names the key."""

import dataclasses
import json
import math
import typing
from typing import get_args

import pytest

from orca_jax import plugins
from orca_jax.artifacts import plain
from orca_jax.config import BENCHMARK_MODES, Attention, DataConfig, ExperimentConfig, Preset, load
from orca_jax.config_check import ConfigError, build
from orca_jax.config_teachers import Filter, FlanConfig, FlanKind, Limits, Message, Price, PuzzlesConfig
from orca_jax.configs import mini as mini_file
from orca_jax.data import layouts
from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import open_ended, registry, toxigen
from orca_jax.experiments import evaluate
from orca_jax.queries import flan, quality, system_messages
from orca_jax.student import attention, presets
from orca_jax.student.presets import RopeScaling


def changed(path, value):
    """mini.py's values with one key of another value, new keys included."""
    values = json.loads(mini_file.get_config("runlocal").to_json_best_effort())
    *parents, last = path
    target = values
    for key in parents:
        target = target[key]
    target[last] = value
    return values


def test_a_config_dict_and_its_plain_values_are_one():
    assert load(mini_file.get_config()) == load(json.loads(mini_file.get_config().to_json_best_effort()))


def test_lists_become_tuples_of_dataclasses():
    config = load(mini_file.get_config("runlocal"))
    assert isinstance(config, ExperimentConfig)
    assert [teacher.name for teacher in config.teachers] == ["apprentice", "expert"]
    assert [stage.steps for stage in config.curriculum] == [3, 3]
    hash(config.student)  # static for compiled functions


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("sede",), 1, "unknown config key 'sede'; did you mean 'seed'?"),
        (("train", "batch_row"), 4, r"unknown config key 'train.batch_row'; did you mean 'batch_rows'\?"),
        (("student", "hiden_size"), 4, "'student.hiden_size'; did you mean 'hidden_size'"),
        (("teachers", 1, "shere"), 0.5, r"'teachers\[1\].shere'; did you mean 'share'"),
        (("curriculum", 0, "epoch"), 2, r"'curriculum\[0\].epoch'; did you mean 'epochs'"),
        (("seed",), "one", "'seed' must be int, got 'one'"),
        (("seed",), True, "'seed' must be int, got True"),
        (("student", "vocab_size"), 2.5, "'student.vocab_size' must be int, got 2.5"),
        (("puzzles", "families"), "navigate", "'puzzles.families' must be a list"),
        (("puzzles", "messages"), {"1": "much"}, "'puzzles.messages.1' must be float"),
        (("optimizer",), 3, "'optimizer' must be a mapping"),
        (
            ("train", "compute_dtype"),
            "float8",
            "'train.compute_dtype' must be .* or 'bfloat16', got 'float8'",
        ),
        (("teachers", 0, "kind"), "gpt4", r"'teachers\[0\].kind' must be 'oracle', 'file', .*, got 'gpt4'"),
        (("teachers", 0, "kind"), "file", "kind 'file' needs a path"),
        (("teachers", 0, "path"), "x.jsonl", "kind 'oracle' takes no path"),
        (("teachers", 0, "columns"), {"answer": "a"}, "kind 'oracle' takes no columns; a file does"),
        (("teachers", 0, "columns"), {"answer": "a", "min_score": 1.0}, "needs columns.score, the column"),
        (("teachers", 0, "filters"), ["later"], "filter 'later' needs several samples a query"),
        (
            ("teachers", 0, "shown"),
            17,
            r"'teachers\[0\].shown' must be at most 16, got 17",
        ),
        (("evaluation", "messages"), [1, 17], r"'evaluation.messages\[1\]' must be at most 16, got 17"),
        (
            ("puzzles", "messages"),
            {"seven": 1.0},
            "'puzzles.messages.seven' must be '1', '2', .* or '16', got 'seven'",
        ),
        (("puzzles", "messages"), {"17": 1.0}, "'puzzles.messages.17' must be '1', .* or '16', got '17'$"),
        (("curriculum", 0, "datasets"), {}, r"0\].datasets' must be not empty, got an empty mapping"),
        (("student", "head_dim"), 7, "'student.head_dim' must be a multiple of 2, got 7"),
        (("optimizer", "betas"), [0.9], r"'optimizer.betas\[1\]' is missing"),
        (("optimizer", "betas"), [0.9, 0.9, 0.9], "'optimizer.betas' must be shorter, got a list"),
        (("teachers", 0, "share"), 0.0, r"'teachers\[0\].share' must be above 0, got 0.0"),
        (("teachers", 0, "name"), "expert", "distinct names"),
        (("teachers", 0, "name"), "validation", "distinct names other than 'validation'"),
        (
            ("curriculum", 0, "datasets"),
            {"expret": 1.0},
            "'apprentice' names data set 'expret'; known: apprentice, expert",
        ),
    ],
)
def test_errors_name_the_key(path, value, message):
    with pytest.raises(ConfigError, match=message):
        load(changed(path, value))


@pytest.mark.parametrize(
    ("part", "key", "value"), [("puzzles", "families", []), ("data", "validation_fraction", 0)]
)
def test_evaluations_while_training_need_puzzles_that_are_held_out(part, key, value):
    values = changed(("train", "evaluate_every"), 5)
    values[part][key] = value
    with pytest.raises(ConfigError, match=r"set puzzles\.families and data\.validation_fraction, or"):
        load(values)


def test_a_missing_key_is_named():
    values = changed(("name",), "x")
    del values["student"]["vocab_size"]
    with pytest.raises(ConfigError, match=r"'student.vocab_size' is missing"):
        load(values)


def count_keys(kind):
    """Keys that a config of this type has; entries of lists and of mappings are data, and not counted."""
    hints = typing.get_type_hints(kind)
    keys = [hints[field.name] for field in dataclasses.fields(kind)]
    return sum(count_keys(key) if dataclasses.is_dataclass(key) else 1 for key in keys)


def test_an_experiment_has_at_most_71_keys():
    assert 40 < count_keys(ExperimentConfig) <= 71


def test_plain_is_what_json_gives_back():
    parts = (DataConfig(layout="chatml"), PuzzlesConfig(families=("navigate",)))
    assert json.loads(json.dumps(plain(parts))) == json.loads(json.dumps([plain(part) for part in parts]))
    assert plain(3) == 3


def test_names_are_those_of_the_packages_that_know_them():
    assert set(registry.BENCHMARKS) == set(BENCHMARK_MODES)
    scored = [name for name, benchmark in registry.BENCHMARKS.items() if benchmark.scored]
    assert {mode for name in scored for mode in BENCHMARK_MODES[name]} == set(scoring.MODES)
    assert BENCHMARK_MODES["toxigen"] == tuple(f"{toxigen.MODE}_{kind}" for kind in toxigen.KINDS)
    assert get_args(Filter) == quality.FLAGS
    assert get_args(FlanKind) == tuple(flan.READERS)
    assert get_args(Message) == tuple(map(str, system_messages.all_messages()))
    assert get_args(Attention) == ("auto", *attention.BACKENDS)
    assert get_args(Preset) == ("", *presets.PRESETS)
    assert plugins.LAYOUTS.own == ("", *layouts.LAYOUTS, layouts.TEMPLATE)
    assert tuple(open_ended.SOURCES) == evaluate.OPEN
    assert FlanConfig.malformed == flan.MALFORMED


def test_an_unknown_preset_is_refused_with_a_near_one():
    with pytest.raises(ConfigError, match="got 'llama-8b'; did you mean 'llama3-8b'"):
        load(changed(("student", "preset"), "llama-8b"))


def test_a_kind_of_flan_file_is_not_lost_where_no_config_was_checked():
    """The reader refuses what it does not know."""
    assert FlanConfig(sources={"coT": "x"}).sources == dict.fromkeys(get_args(FlanKind), "") | {"coT": "x"}


@pytest.mark.parametrize(
    ("kind", "values"),
    [(Price, {"prompt": -0.1}), (Price, {"completion": math.nan}), (Limits, {"requests": -1})],
)
def test_prices_and_limits_are_0_or_more(kind, values):
    with pytest.raises(ConfigError, match="must be at least 0"):
        build(kind, values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(kind="yarn"), "'rope.kind' must be .*, got 'yarn'"),
        (dict(kind="linear", factor=0.5), "'rope.factor' must be at least 1"),
        (dict(high_frequency_factor=0.5), "config at rope: rope scaling needs"),
    ],
)
def test_rope_scaling_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(RopeScaling, changes, "rope")
