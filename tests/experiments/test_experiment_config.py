"""A config's dictionary becomes dataclasses, or an error that names the key."""

import json

import pytest

from orca_jax.configs import mini as mini_file
from orca_jax.experiments.config import DataConfig, ExperimentConfig, PuzzlesConfig, load, plain
from orca_jax.settings import SettingsError, count_keys


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
        (("train", "compute_dtype"), "float8", "at train: .*float8.*known: float32, bfloat16"),
        (("teachers", 0, "kind"), "gpt4", r"at teachers\[0\]: .*'gpt4'; known: oracle, file"),
        (("teachers", 0, "kind"), "file", "kind 'file' needs a path"),
        (("teachers", 0, "path"), "x.jsonl", "kind 'oracle' takes no path"),
        (
            ("teachers", 0, "shown"),
            17,
            "teacher 'apprentice': shown: 17 is no system message; they are 1 to 16",
        ),
        (("evaluation", "messages"), [1, 17], "config at evaluation: messages: 17 is no system message"),
        (
            ("puzzles", "messages"),
            {"seven": 1.0},
            "config at puzzles: messages: 'seven' is no system message",
        ),
        (("teachers", 0, "share"), 0.0, r"share=0.0 must be in \(0, 1\]"),
        (("teachers", 0, "name"), "expert", "distinct names"),
        (("teachers", 0, "name"), "validation", "distinct names other than 'validation'"),
        (
            ("curriculum", 0, "datasets"),
            {"expret": 1.0},
            "'apprentice' names data set 'expret'; the teachers are",
        ),
    ],
)
def test_errors_name_the_key(path, value, message):
    with pytest.raises(SettingsError, match=message):
        load(changed(path, value))


def test_a_missing_key_is_named():
    values = changed(("name",), "x")
    del values["student"]["vocab_size"]
    with pytest.raises(SettingsError, match=r"'student.vocab_size' is missing"):
        load(values)


def test_an_experiment_has_at_most_60_keys():
    assert 40 < count_keys(ExperimentConfig) <= 60


def test_plain_is_what_json_gives_back():
    parts = (DataConfig(layout="chatml"), PuzzlesConfig(families=("navigate",)))
    assert json.loads(json.dumps(plain(parts))) == json.loads(json.dumps([plain(part) for part in parts]))
    assert plain(3) == 3
