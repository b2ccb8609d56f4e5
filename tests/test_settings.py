"""Settings: a dictionary becomes dataclasses, and what is wrong is named by its key."""

import dataclasses
import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.settings import SettingsError, build, count_keys, differences, joined, section


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
    ({"zzz": 1}, r"unknown config key 'zzz'; known here: seed, student, .*fallback"),
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
    ({"mixture": [1]}, r"'mixture' must be a mapping, got \[1\]"),
    ({"mixture": {"x": "half"}}, r"'mixture\.x' must be float, got 'half'"),
    ({"fallback": 3}, "'fallback' must be a mapping, got 3"),
]
REFUSED = [
    ({"student": {"name": "s", "weight": -1}}, r"config at student: weight=-1\.0 must not be negative"),
    ({"stages": [{"name": "s", "weight": -1}]}, r"config at stages\[0\]: weight=-1\.0"),
]


@pytest.mark.parametrize(("change", "message"), [*UNKNOWN, *ILL_TYPED, *REFUSED])
def test_a_wrong_key_is_named(change, message):
    with pytest.raises(SettingsError, match=message):
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
    with pytest.raises(SettingsError, match=f"config {missing} missing"):
        build(Config, values)


def test_what_a_whole_config_refuses_is_told_too():
    with pytest.raises(SettingsError, match=r"^config: weight=-2\.0 must not be negative"):
        build(Stage, {"name": "s", "weight": -2})


@given(st.builds(Stage, st.text(), st.floats(0, 9), st.none() | st.integers()))
@settings(max_examples=30)
def test_a_dataclass_as_a_dictionary_is_built_back(stage):
    assert build(Stage, dataclasses.asdict(stage)) == stage


def test_keys_are_counted_without_entries_of_lists_and_mappings():
    own = ("seed", "shuffle", "stages", "mixture", "teachers", "fallback")
    assert count_keys(Stage) == 3
    assert count_keys(Config) == len(own) + count_keys(Stage)


LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=200)
TREES = st.recursive(
    LEAVES,
    lambda tree: st.lists(tree, max_size=3) | st.dictionaries(st.text("xyz", min_size=1), tree, max_size=3),
)


@given(there=TREES, now=TREES)
def test_what_differs_is_said_leaf_by_leaf_and_never_by_equal_texts(there, now):
    assert not list(differences(there, there))
    lines = list(differences({"key": there}, {"key": now}))
    assert bool(lines) == (there != now)
    for line in lines:
        before, _, after = line.partition(": ")[2].partition(" there, ")
        assert before != after.removesuffix(" now")
        assert len(before) < 70


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"stages": (Stage("a"), Stage("b", epochs=8))}, "stages[1].epochs: None there, 8 now"),
        (
            {"stages": (Stage("a"),)},
            "stages[1]: {'name': 'b', 'weight': 1.0, 'epochs': None} there, absent now",
        ),
        ({"mixture": {"bbh": 1.0}}, "mixture.bbh: absent there, 1.0 now"),
        ({"shuffle": False}, "shuffle: True there, False now"),
    ],
)
def test_a_changed_key_is_named_with_its_place(changes, line):
    config = Config(seed=1, student=Stage("s"), stages=(Stage("a"), Stage("b")))
    kept = json.loads(json.dumps(section(config)))
    assert list(differences(kept, section(dataclasses.replace(config, **changes)))) == [line]


def test_keys_that_were_not_kept_had_their_defaults():
    config = Config(seed=1, student=Stage("s", weight=2.0), stages=(Stage("a"),))
    kept = {"seed": 1, "student": {"name": "s", "weight": 2.0}, "stages": [{"name": "a"}]}
    assert not list(differences(kept, section(config)))
    assert not list(differences(kept, joined(section(config, ("seed",)), section(config, without=("seed",)))))
    (line,) = differences({**kept, "student": {"name": "s"}}, section(config))
    assert line == "student.weight: 1.0 there, 2.0 now (absent there: the default)"
    (line,) = differences({**kept, "student": {"weight": 2.0}}, section(config))
    assert line == "student.name: absent there, 's' now"


@given(text=st.text("ab", min_size=100, max_size=300), place=st.integers(0, 99))
def test_long_texts_are_shown_where_they_differ(text, place):
    other = text[:place] + "c" + text[place + 1 :]
    (line,) = differences({"key": text}, {"key": other})
    assert "c" in line
    assert len(line) < 150
