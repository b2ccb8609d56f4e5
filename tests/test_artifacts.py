"""Artifacts: files whole or absent, finished work told from unfinished, and another config's work refused."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax import artifacts
from orca_jax.artifacts import (
    Artifact,
    ArtifactError,
    Section,
    atomic_write,
    differences,
    digest,
    joined,
    read_manifest,
    section,
)

MADE_BY = {"program": "prepare", "config": {"seed": 1, "data": {"row_length": 64, "sets": ["a"]}}}
INPUTS = {"traces": "f00d"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x)
)


def changed(**data):
    config = MADE_BY["config"]
    return MADE_BY | {"config": config | {"data": config["data"] | data}}


@pytest.mark.parametrize(("mode", "content"), [("w", "Bläh ▁\n"), ("wb", b"\x00\xff")])
def test_a_file_is_written_with_its_folders(tmp_path, mode, content):
    path = tmp_path / "new/folder/file"
    with atomic_write(path, mode) as file:
        file.write(content)
    assert path.read_bytes() == (content.encode() if mode == "w" else content)
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_seen_before_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existed", [False, True])
def test_an_exception_leaves_what_was_there(tmp_path, error, existed):
    path = tmp_path / "file"
    if existed:
        path.write_text("old")

    def interrupted():
        with atomic_write(path) as file:
            file.write("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert [p.read_text() for p in tmp_path.iterdir()] == (["old"] if existed else [])


@given(value=st.dictionaries(st.text(max_size=5), JSON, max_size=3))
@settings(max_examples=50)
def test_a_digest_depends_on_content_and_not_on_order(value):
    assert digest(dict(reversed(value.items()))) == digest(value)
    assert digest({**value, "more": 1}) != digest({**value, "more": 2})


def test_a_files_digest_is_the_sha256_of_its_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert artifacts.file_digest(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_work_is_finished_once_the_manifest_is_written(tmp_path):
    assert not Artifact(tmp_path, MADE_BY, INPUTS).finished()
    Artifact(tmp_path, MADE_BY, INPUTS).begin()
    assert not Artifact(tmp_path, MADE_BY, INPUTS).finished()
    Artifact(tmp_path, MADE_BY, INPUTS).finish({"examples": 3})
    assert Artifact(tmp_path, MADE_BY, INPUTS).finished()


def test_a_manifest_says_what_made_it_and_what_is_in_it(tmp_path):
    written = Artifact(tmp_path, MADE_BY, INPUTS).finish({"examples": 3})
    assert read_manifest(tmp_path) == written
    assert written["fingerprint"] == artifacts.fingerprint(MADE_BY, INPUTS)
    assert (written["provenance"], written["inputs"], written["counts"]) == (MADE_BY, INPUTS, {"examples": 3})
    assert {"python", "jax", "numpy", "XLA_FLAGS"} <= set(written["versions"])


def test_counts_do_not_change_the_fingerprint(tmp_path):
    one = Artifact(tmp_path / "a", MADE_BY, INPUTS).finish({"examples": 3})
    two = Artifact(tmp_path / "b", MADE_BY, INPUTS).finish({"examples": 4})
    assert one["fingerprint"] == two["fingerprint"]


DIFFERENT = [
    (changed(row_length=128), INPUTS, r"config\.data\.row_length: 64 there, 128 now"),
    (changed(sets=["a", "b"]), INPUTS, r"config\.data\.sets\[1\]: absent there, 'b' now"),
    (changed(overlong="drop"), INPUTS, r"config\.data\.overlong: absent there, 'drop' now"),
    (MADE_BY, {"traces": "beef"}, "traces: 'f00d' there, 'beef' now"),
]


@pytest.mark.parametrize(("provenance", "inputs", "message"), DIFFERENT)
def test_another_configs_finished_work_is_refused_and_the_change_named(tmp_path, provenance, inputs, message):
    Artifact(tmp_path, MADE_BY, INPUTS).finish({})
    with pytest.raises(ArtifactError, match=rf"made with other settings \({message}\).*another workdir"):
        Artifact(tmp_path, provenance, inputs).finished()


@pytest.mark.parametrize(("provenance", "inputs", "message"), DIFFERENT)
def test_another_configs_unfinished_work_is_removed_unless_it_is_costly(
    tmp_path, caplog, provenance, inputs, message
):
    Artifact(tmp_path, MADE_BY, INPUTS).begin()
    half, mine = tmp_path / "shards/half.bin", tmp_path / "mine.txt"
    for path in (half, mine):
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    Artifact(tmp_path, MADE_BY, INPUTS).begin()  # goes on
    with pytest.raises(ArtifactError, match=rf"begun with other settings \({message}\) and holds shards"):
        Artifact(tmp_path, provenance, inputs).begin(costly="shards/*.bin")
    assert half.exists()
    mark = Artifact(tmp_path, provenance, inputs).begin(own=("shards",))
    assert not half.exists()
    assert mine.exists()
    assert re.search(message, caplog.text)
    assert Artifact(tmp_path, provenance, inputs).finish({})["fingerprint"] == mark


def test_what_nothing_stands_on_is_made_again(tmp_path, caplog):
    Artifact(tmp_path, MADE_BY, INPUTS).finish({})
    assert not Artifact(tmp_path, changed(row_length=128), INPUTS).finished(remake=True)
    assert not any(tmp_path.iterdir())
    assert "row_length: 64 there, 128 now" in caplog.text


def test_an_input_that_changed_is_named_with_its_place(tmp_path):
    Artifact(tmp_path, MADE_BY, INPUTS).finish({})
    with pytest.raises(ArtifactError, match=r"traces: 'f00d' there, 'beef' now \(runs/a/traces\)"):
        Artifact(tmp_path, MADE_BY, {"traces": "beef"}, {"traces": "runs/a/traces"}).finished()


def test_a_setting_that_is_new_had_its_default(tmp_path):
    old = {"program": "train", "student": {"size": 4}}

    def now(**more):
        student = Section({"size": 4, "norm": False, **more}, {"norm": False, "lora": {"rank": 0}})
        return {"program": "train", "student": student}

    made, mark = (
        Artifact(tmp_path / "made", old, {}).finish({}),
        Artifact(tmp_path / "begun", old, {}).begin(),
    )
    assert Artifact(tmp_path / "made", now(), {}).finished()
    assert Artifact(tmp_path / "begun", now(), {}).begin() == mark
    assert Artifact(tmp_path / "begun", now(), {}).finish({})["fingerprint"] == mark == made["fingerprint"]
    with pytest.raises(
        ArtifactError, match=r"student\.norm: False there, True now \(absent there: the default"
    ):
        Artifact(tmp_path / "made", now(norm=True), {}).finished()
    with pytest.raises(ArtifactError, match=r"student\.lora\.rank: 0 there, 8 now \(absent"):
        Artifact(tmp_path / "made", now(lora={"rank": 8}), {}).finished()


def test_only_what_changed_is_named(tmp_path):
    Artifact(tmp_path, MADE_BY, INPUTS).finish({})
    with pytest.raises(ArtifactError) as error:
        Artifact(tmp_path, changed(row_length=128), INPUTS).finished()
    assert "seed" not in str(error.value)
    assert "traces" not in str(error.value)


def test_tuples_and_lists_are_one_to_a_fingerprint(tmp_path):
    Artifact(tmp_path, {"sets": ("a", "b")}, {}).finish({})
    assert Artifact(tmp_path, {"sets": ["a", "b"]}, {}).finished()


def test_an_absent_manifest_is_told(tmp_path):
    with pytest.raises(ArtifactError, match=r"has no manifest\.json: it is unfinished or not an artifact"):
        read_manifest(tmp_path)


def test_a_damaged_manifest_is_told(tmp_path):
    Artifact(tmp_path, MADE_BY, INPUTS).finish({})
    path = tmp_path / artifacts.MANIFEST
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ArtifactError, match=r"manifest\.json is not JSON .* remove the directory"):
        Artifact(tmp_path, MADE_BY, INPUTS).finished()


def test_a_foreign_manifest_is_told(tmp_path):
    (tmp_path / artifacts.MANIFEST).write_text(json.dumps({"name": "an app"}))
    with pytest.raises(ArtifactError):
        Artifact(tmp_path, MADE_BY, INPUTS).finished()


# What differs between settings


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    weight: float = 1.0
    epochs: int | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int
    student: Stage
    shuffle: bool = True
    stages: tuple[Stage, ...] = ()
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)


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
