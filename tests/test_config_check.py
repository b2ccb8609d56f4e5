"""A mapping becomes dataclasses, and each wrong key is named with what it must be."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
from annotated_types import Ge, Interval
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.config_check import ConfigError, build


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    weight: float = 1.0
    epochs: int | None = None

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must not be negative")


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int
    student: Stage
    shuffle: bool = True
    stages: tuple[Stage, ...] = ()
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    teachers: Mapping[str, Stage] = dataclasses.field(default_factory=dict)
    fallback: Stage | None = None

    NO_NUMBER: ClassVar = ("shuffle",)


GOOD = {"seed": 1, "student": {"name": "s"}}


def test_nested_dataclasses_are_built():
    config = build(
        Config,
        {
            "seed": 3,
            "shuffle": False,
            "student": {"name": "s", "weight": 2},
            "stages": [{"name": "a", "epochs": 4}, {"name": "b"}],
            "mixture": {"x": 1},
            "teachers": {"gpt": {"name": "t"}},
            "fallback": None,
        },
    )
    stages = (Stage("a", epochs=4), Stage("b"))
    assert config == Config(3, Stage("s", 2.0), False, stages, {"x": 1.0}, {"gpt": Stage("t")}, None)
    assert isinstance(config.student.weight, float)
    assert isinstance(config.mixture["x"], float)


def test_what_is_not_given_has_its_default():
    assert build(Config, GOOD) == Config(1, Stage("s"))


UNKNOWN = [
    ({"sead": 1}, r"unknown config key 'sead'; did you mean 'seed'\?"),
    (
        {"student": {"name": "s", "wieght": 1}},
        r"unknown config key 'student\.wieght'; did you mean 'weight'\?",
    ),
    ({"zzz": 1}, r"unknown config key 'zzz'; known here: seed, student, .*, fallback$"),
    (
        {"stages": [{"name": "a"}, {"nam": "b"}]},
        r"unknown config key 'stages\[1\]\.nam'; did you mean 'name'\?",
    ),
    (
        {"teachers": {"gpt": {"names": "x"}}},
        r"unknown config key 'teachers\.gpt\.names'; did you mean 'name'\?",
    ),
]
ILL_TYPED = [
    ({"seed": "1"}, "'seed' must be int, got '1'"),
    ({"seed": 1.5}, r"'seed' must be int, got 1\.5"),
    ({"seed": True}, "'seed' must be int, got True"),
    ({"seed": None}, "'seed' must be int, got None"),
    ({"shuffle": 1}, "'shuffle' must be bool, got 1"),
    ({"student": "s"}, "'student' must be a mapping, got 's'"),
    ({"student": {"name": 3}}, r"'student\.name' must be str, got 3"),
    ({"student": {"name": "s", "weight": True}}, r"'student\.weight' must be float, got True"),
    ({"stages": "ab"}, "'stages' must be a list, got 'ab'"),
    ({"stages": [{"name": "a", "epochs": "many"}]}, r"'stages\[0\]\.epochs' must be int, got 'many'"),
    ({"mixture": [1]}, r"'mixture' must be a mapping, got a list"),
    ({"mixture": {"x": "half"}}, r"'mixture\.x' must be float, got 'half'"),
    ({"fallback": 3}, "'fallback' must be a mapping, got 3"),
    ({"seed": np.int64(3)}, "'seed' must be int, got '3'"),  # JSON has no such value
]
REFUSED = [
    ({"student": {"name": "s", "weight": -1}}, r"config at student: weight=-1\.0 must not be negative"),
    ({"stages": [{"name": "s", "weight": -1}]}, r"config at stages\[0\]: weight=-1\.0"),
]


@pytest.mark.parametrize(("change", "message"), [*UNKNOWN, *ILL_TYPED, *REFUSED])
def test_a_wrong_key_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        build(Config, GOOD | change)


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({"seed": 1}, "key 'student' is"),
        ({}, "keys 'seed', 'student' are"),
        ({"seed": 1, "student": {}}, r"key 'student\.name' is"),
    ],
)
def test_all_missing_keys_are_named(values, missing):
    with pytest.raises(ConfigError, match=f"config {missing} missing"):
        build(Config, values)


def test_what_a_whole_config_refuses_is_told_too():
    with pytest.raises(ConfigError, match=r"^config: weight=-2\.0 must not be negative"):
        build(Stage, {"name": "s", "weight": -2})
    with pytest.raises(ConfigError, match=r"^the config must be a mapping, got an empty list"):
        build(Stage, [])


@given(st.builds(Stage, st.text(), st.floats(0, 9), st.none() | st.integers()))
@settings(max_examples=30)
def test_a_dataclass_as_a_dictionary_is_built_back(stage):
    assert build(Stage, dataclasses.asdict(stage)) == stage


def test_all_wrong_keys_are_named_at_once():
    wrong = {"sead": 1, "student": {"weight": "much"}, "stages": [{"name": "a"}, {"name": 3}]}
    with pytest.raises(ConfigError) as error:
        build(Config, wrong)
    said = str(error.value).split("; ")
    assert said == [
        "config key 'student.weight' must be float, got 'much'",
        "config key 'stages[1].name' must be str, got 3",
        "unknown config key 'sead'",
        "did you mean 'seed'?",
        "config keys 'seed', 'student.name' are missing",
    ]


@dataclasses.dataclass(frozen=True)
class Chosen:
    kind: Literal["oracle", "file"] = "oracle"
    share: Annotated[float, Interval(gt=0, le=1)] = 1.0
    counts: Mapping[Literal["a", "b"], Annotated[int, Ge(1)]] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "fil"}, "config key 'kind' must be 'oracle' or 'file', got 'fil'; did you mean 'file'?"),
        ({"kind": "gpt4"}, "config key 'kind' must be 'oracle' or 'file', got 'gpt4'"),
        ({"share": 0}, "config key 'share' must be above 0, got 0"),
        ({"share": 1.5}, "config key 'share' must be at most 1, got 1.5"),
        ({"share": math.nan}, "config key 'share' must be at most 1, got nan"),
        ({"counts": {"a": 0}}, "config key 'counts.a' must be at least 1, got 0"),
        ({"counts": {"c": 1}}, "config key 'counts.c' must be 'a' or 'b', got 'c'"),
    ],
)
def test_choices_and_ranges_are_said(values, message):
    with pytest.raises(ConfigError) as error:
        build(Chosen, values)
    assert str(error.value) == message


def test_the_place_of_a_part_is_said():
    with pytest.raises(ConfigError, match=r"config key 'student\.weight' must be float, got 'x'"):
        build(Stage, {"name": "s", "weight": "x"}, "student")
    with pytest.raises(ConfigError, match=r"config at student: weight=-1\.0 must not be negative"):
        build(Stage, {"name": "s", "weight": -1}, "student")
