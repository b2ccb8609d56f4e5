"""Rows of files: every form gives the same rows, and malformed ones are counted, up to a share."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.files import Row, Tally, counted, rows
from orca_jax.records import RecordError

VALUES = st.dictionaries(st.sampled_from("abc"), st.none() | st.integers() | st.text(max_size=9), max_size=3)


def values(path):
    return [row.values for row in rows(path)]


@given(given_rows=st.lists(VALUES, max_size=9), indent=st.sampled_from([None, 0, 3]))
def test_every_form_of_json_gives_the_same_rows(tmp_path_factory, given_rows, indent):
    folder = tmp_path_factory.mktemp("rows")
    lines = "".join(f"{json.dumps(row)}\r\n\n" for row in given_rows).encode()
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (folder / "a.ndjson.gz").write_bytes(gzip.compress(lines))
    (folder / "a.json").write_bytes(b" \n" + json.dumps(given_rows, indent=indent).encode() + b"\n")
    assert [values(folder / name) for name in ("a.jsonl", "a.ndjson.gz", "a.json")] == [given_rows] * 3


def test_rows_are_named_by_line_or_number(tmp_path):
    some = [{"a": 1}, {"a": 2}]
    for name, text in (("a.json", json.dumps(some, indent=1)), ("a.jsonl", '\n{"a": 1}\n{"a": 2}')):
        (tmp_path / name).write_text(text)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(some), tmp_path / "a.parquet")
    places = {
        name: [row.where for row in rows(tmp_path / name)] for name in ("a.json", "a.jsonl", "a.parquet")
    }
    assert places == {
        "a.json": [f"{tmp_path}/a.json:2", f"{tmp_path}/a.json:5"],
        "a.jsonl": [f"{tmp_path}/a.jsonl:2", f"{tmp_path}/a.jsonl:3"],
        "a.parquet": [f"{tmp_path}/a.parquet: row 0", f"{tmp_path}/a.parquet: row 1"],
    }


@pytest.mark.parametrize(
    "text", ["[", "[1,", '[1,\n{"a": 1}', "[1]]", "[1 2]", '[{"a": nul}]', '["\\ud83', "[,]"]
)
def test_a_damaged_array_is_an_error_of_its_file_and_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RecordError, match=rf"{tmp_path}/a.json:\d: the JSON array is damaged or cut off"):
        values(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1},\n{"a": 2}\n{"a": 3},\n{"a": 4}\n]\n', ":3: .*'{' where ',' or ']' was expected"),
        ('[{"a": 1},\n{"a": 2}]\n\nrubbish\n\n', ":4: .*there is something after its end"),
        ("[\n]\n[]\n", ":3: .*there is something after its end"),
        ("[1\n[]\n]\n", r":2: .*'\[' where ',' or '\]' was expected"),
        ('[{"a": 1},\n{"a": 2,},\n{"a": 3}\n]\n', ":2: "),
    ],
)
def test_a_damaged_array_names_the_line_of_the_damage(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RecordError, match=f"a.json{said}"):
        values(tmp_path / "a.json")


def read(row):
    if row.values % 2:
        raise RecordError(f"odd, not {row.values}; add {row.values}")
    return row.values


def numbered(*given_rows):
    return [Row(f"f:{number}", number, value) for number, value in enumerate(given_rows)]


def test_malformed_rows_are_left_out_counted_and_said(caplog):
    tally = Tally(max_rate=0.5)
    found = list(counted("f", numbered(0, 1, 2, RecordError("no JSON \ud83d")), read, tally))
    assert found == [0, 2]
    assert tally.summary() == {
        "read": 2,
        "malformed": 2,
        "malformed_reasons": {"odd": 1, "no JSON \\ud83d": 1},
        "malformed_places": ["f:1: odd, not 1; add 1", "f:3: no JSON \\ud83d"],
    }
    assert "f: left out 2 malformed rows of 4 (50 %)" in caplog.text


def test_too_many_stop_the_run_early_with_places_and_reasons():
    taken, many = [], numbered(*[0] * 500, *[1] * 600)
    message = (
        r"f: 51 rows are malformed of 551 read, more than the share 0.05 .*teachers\[\].malformed.*51 x odd"
    )
    with pytest.raises(RecordError, match=rf"{message}(.|\n)*\n  f:500: odd, not 1; add 1\n"):
        taken.extend(counted("f", many, read, Tally()))
    assert len(taken) == 500
    with pytest.raises(RecordError, match="1 rows are malformed of 19 read"):
        list(counted("f", numbered(1, *[0] * 18), read, Tally()))
    assert len(list(counted("f", numbered(1, *[0] * 19), read, Tally()))) == 19
