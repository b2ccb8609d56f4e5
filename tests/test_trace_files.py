"""Record files: what is written is read back, and what cannot be read is named."""

import itertools
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax import files
from orca_jax.conversations import read_traces, write_traces
from orca_jax.files import JsonlAppender, read_jsonl, write_jsonl
from orca_jax.records import Item, Message, Outcome, Query, RecordError, Sampling, Trace, Usage, to_json

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY / "../shared/data"
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
WORDS = TEXT.filter(str.strip)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXT, lambda inner: st.lists(inner, max_size=2)
)
EXTRA = st.dictionaries(TEXT, JSON, max_size=3)
INT64 = st.integers(-(2**63), 2**63 - 1)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1),
    max_tokens=st.integers(1, 4096),
    stop=st.lists(TEXT, max_size=2).map(tuple),
    seed=st.none() | INT64,
    top_logprobs=st.integers(0, 20),
)


@st.composite
def conversations(draw, turns=3, weighted=True):
    """A conversation in which the teacher answered last; `weights`: of an answer's loss."""
    weights = st.sampled_from((0.0, 0.5, 1.0)) if weighted else st.just(1.0)
    system = [Message("system", draw(WORDS))] if draw(st.booleans()) else []
    pairs = [
        (Message("user", draw(WORDS)), Message("assistant", draw(WORDS), draw(weights)))
        for _ in range(draw(st.integers(1, turns)))
    ]
    return (*system, *itertools.chain(*pairs))


NATIVE = st.builds(
    Trace,
    id=TEXT,
    query_id=TEXT,
    sample=st.integers(0, 9),
    messages=conversations(),
    collection=TEXT,
    task=TEXT,
    system_message_id=st.none() | st.integers(1, 16),
    teacher=TEXT,
    sampling=SAMPLINGS,
    outcome=st.sampled_from(Outcome),
    usage=st.builds(Usage, st.integers(0, 9), st.integers(0, 9)),
    created=TEXT,
    target=st.none() | TEXT,
    extra=EXTRA,
)


def foreign(*, turns=3, weighted=True):
    """Traces that a foreign schema can hold whole."""

    def build(number, messages, extra):
        return a_trace(id=f"{number:x}", messages=messages, extra=extra)

    return st.builds(build, st.integers(0), conversations(turns=turns, weighted=weighted), EXTRA)


def a_trace(**changes):
    fields = {
        "id": "a",
        "query_id": changes.get("id", "a"),
        "sample": 0,
        "messages": (Message("user", "Why?"), Message("assistant", "So.")),
        "collection": "",
        "task": "",
        "system_message_id": None,
        "teacher": "gpt-4",
        "sampling": Sampling(),
        "outcome": Outcome.OK,
    }
    return Trace(**{**fields, **changes})


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def round_trip(traces, schema, suffix):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"traces{suffix}"
        assert write_traces(path, iter(traces), schema) == len(traces)
        return list(read_traces(path, teacher="gpt-4"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
class TestRoundTrips:
    @settings(max_examples=12)
    @given(traces=st.lists(NATIVE, max_size=3))
    def test_native(self, suffix, traces):
        assert round_trip(traces, "native", suffix) == traces

    @settings(max_examples=12)
    @given(
        traces=st.lists(foreign(), max_size=3),
        one_turn=st.lists(foreign(turns=1, weighted=False), max_size=3),
    )
    def test_foreign_schemas(self, suffix, traces, one_turn):
        for schema in ("messages", "sharegpt"):
            assert round_trip(traces, schema, suffix) == traces
        assert round_trip(one_turn, "openorca", suffix) == one_turn

    @pytest.mark.parametrize("schema", ["openorca", "messages", "sharegpt"])
    def test_a_missing_answer(self, suffix, schema):
        trace = a_trace(messages=(Message("user", "Why?"),), outcome=Outcome.EMPTY)
        assert round_trip([trace], schema, suffix) == [trace]

    def test_many_rows_keep_their_order(self, suffix):
        traces = [a_trace(id=str(number)) for number in range(1100)]
        assert round_trip(traces, "messages", suffix) == traces


class TestJsonLines:
    @settings(max_examples=25)
    @given(extra=EXTRA, correct=st.booleans(), answer=st.none() | st.text(max_size=9))
    def test_records_come_back(self, extra, correct, answer):
        items = [Item("bbh", "task", "1", 0, "zs", Outcome.OK, correct, answer, extra=extra)]
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "items.jsonl"
            assert write_jsonl(path, items) == 1
            assert list(read_jsonl(path, Item)) == items

    def test_reads_one_at_a_time(self, tmp_path):
        path = tmp_path / "queries.jsonl"
        path.write_bytes(b'{"id": "1", "text": "t", "collection": "c", "task": "k"}\nbroken\n')
        records = read_jsonl(path, Query)
        assert next(records) == Query("1", "t", "c", "k")
        with pytest.raises(RecordError, match=r"queries\.jsonl:2: not a JSON object"):
            next(records)

    @given(texts=st.lists(st.text(), max_size=8), data=st.data())
    def test_records_are_read_at_their_places(self, texts, data):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "queries.jsonl"
            queries = [Query(str(number), text, "c", "t") for number, text in enumerate(texts)]
            write_jsonl(path, queries)
            path.write_bytes(path.read_bytes().replace(b"\n", b"\n\n"))
            placed = list(files.read_placed(path, Query))
            assert [query for _, query in placed] == queries
            chosen = data.draw(st.lists(st.sampled_from(placed), max_size=6)) if placed else []
            offsets = [offset for offset, _ in chosen]
            assert list(files.read_at(path, offsets, Query)) == [query for _, query in chosen]

    def test_a_wrong_place_is_named(self, tmp_path):
        path = tmp_path / "queries.jsonl"
        write_jsonl(path, [Query("1", "a", "c", "t")])
        with pytest.raises(RecordError, match=r"queries\.jsonl: byte 5: not a JSON object"):
            list(files.read_at(path, [5], Query))

    def test_a_failed_write_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "a.jsonl"
        write_jsonl(path, [Query("1", "t", "c", "k")])
        with pytest.raises(ZeroDivisionError):
            write_jsonl(path, (1 / 0 for _ in range(1)))
        assert [query.id for query in read_jsonl(path, Query)] == ["1"]
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b'{"id": "\xff"}', "not UTF-8 .byte 9"),
            (b"[" * 100_000, "limits"),
            (b'{"id": ' + b"1" * 5000 + b"}", "limits"),
            (b"[1]", "must be a JSON object"),
            (b'{"id": 3}', "Query.id: expected str, got 3"),
            (b'{"id": "3"}', "Query lacks text, collection, task"),
        ],
    )
    def test_errors_name_file_and_line(self, tmp_path, line, message):
        path = tmp_path / "q.jsonl"
        path.write_bytes(b"\n  \n" + line + b"\n")
        with pytest.raises(RecordError, match=rf"{path}:3: .*{message}"):
            list(read_jsonl(path, Query))

    def test_a_mark_at_the_start_windows_line_ends_and_odd_separators(self, tmp_path):
        path = tmp_path / "q.jsonl"
        row = json.dumps({"id": "1", "text": "a\u2028b", "collection": "", "task": ""}, ensure_ascii=False)
        path.write_bytes(b"\xef\xbb\xbf" + row.encode() + b"\r\n")
        assert [query.text for query in read_jsonl(path, Query)] == ["a\u2028b"]

    def test_a_line_of_10_mb(self, tmp_path):
        trace = a_trace(messages=(Message("user", "é" * 5_000_000), Message("assistant", "So.")))
        write_traces(tmp_path / "t.jsonl", [trace])
        assert list(read_traces(tmp_path / "t.jsonl")) == [trace]


def read_or_named(content, suffix):
    """Reads a file of that content; the one error allowed is RecordError, with the file's name."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"t{suffix}"
        path.write_bytes(content)
        try:
            assert all(isinstance(trace, Trace) for trace in read_traces(path))
        except RecordError as error:
            named = str(path) in str(error)
            assert named


@pytest.fixture(scope="module")
def parquet_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "t.parquet"
    write_traces(path, [a_trace(id=str(number)) for number in range(20)])
    return path.read_bytes()


COLUMNS = ["id", "system_prompt", "question", "response", "messages", "conversations", "extra", "outcome"]
COLUMNS += ["query_id", "sample", "teacher", "usage", "sampling"]


class TestFuzz:
    @given(content=st.binary(max_size=200))
    def test_any_bytes(self, content):
        read_or_named(content, ".jsonl")

    @given(
        row=st.dictionaries(
            st.sampled_from(COLUMNS),
            st.recursive(
                JSON | st.floats() | st.sampled_from(["ok", "user", "gpt"]),
                lambda inner: (
                    st.lists(inner, max_size=2)
                    | st.dictionaries(
                        st.sampled_from(["role", "content", "from", "value"]), inner, max_size=4
                    )
                ),
            ),
        )
    )
    def test_any_values_in_known_columns(self, row):
        read_or_named(json.dumps(row).encode(), ".jsonl")


class TestAppender:
    def test_appends_and_reopens(self, tmp_path):
        path = tmp_path / "new" / "replies.jsonl"
        for id in "ab":
            with JsonlAppender(path) as appender:
                appender.append(Query(id, "", "", ""))
        assert [query.id for query in read_jsonl(path, Query)] == ["a", "b"]

    @settings(max_examples=30)
    @given(cut=st.integers(1, 10_000), text=TEXT)
    def test_a_torn_last_line_is_dropped(self, cut, text):
        first, second = Query("1", text, "", ""), Query("2", "x" * 70_000, "", "")
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "replies.jsonl"
            write_jsonl(path, [first, second])
            path.write_bytes(path.read_bytes()[: -1 - cut])
            with JsonlAppender(path) as appender:
                appender.append(second)
            assert list(read_jsonl(path, Query)) == [first, second]

    def test_says_so(self, tmp_path, caplog):
        path = tmp_path / "replies.jsonl"
        path.write_bytes(b'{"id": "1", "te')
        with caplog.at_level(logging.WARNING), JsonlAppender(path):
            pass
        assert f"{path}: dropped a torn last line of 15 bytes" in caplog.text
        assert path.read_bytes() == b""

    def test_a_whole_line_without_its_end_is_kept(self, tmp_path, caplog):
        path = tmp_path / "replies.jsonl"
        path.write_bytes(json.dumps(to_json(Query("1", "", "", ""))).encode())
        with JsonlAppender(path) as appender:
            appender.append(Query("2", "", "", ""))
        assert [query.id for query in read_jsonl(path, Query)] == ["1", "2"]
        assert not caplog.text

    def test_what_was_appended_survives_a_kill(self, tmp_path):
        path = tmp_path / "replies.jsonl"
        script = (
            "import os, sys; from orca_jax import files, records\n"
            "appender = files.JsonlAppender(sys.argv[1])\n"
            "appender.append(records.Query('1', '', '', ''))\n"
            "os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", script, str(path)], check=False, cwd=REPOSITORY)
        assert [query.id for query in read_jsonl(path, Query)] == ["1"]


class TestForeignRows:
    def test_openorca(self, tmp_path):
        row = {"id": "niv.7", "system_prompt": "Be kind.", "question": "Q", "response": "A", "score": 3}
        path = written(tmp_path / "t.jsonl", row)
        (trace,) = read_traces(path, teacher="gpt-4", recognise={"Be kind.": 5}.get)
        assert trace == a_trace(
            id="niv.7",
            collection="niv",
            messages=(Message("system", "Be kind."), Message("user", "Q"), Message("assistant", "A")),
            system_message_id=5,
            extra={"score": 3},
        )

    @pytest.mark.parametrize("nothing", [None, ""])
    def test_no_system_text_and_no_answer(self, tmp_path, nothing):
        row = {"id": "t0.1", "system_prompt": nothing, "question": "Q", "response": nothing}
        path = written(tmp_path / "t.jsonl", row)
        (trace,) = read_traces(path, recognise={"": 1}.get)
        assert trace.messages == (Message("user", "Q"),)
        assert (trace.outcome, trace.system_message_id, trace.answer) == (Outcome.EMPTY, 1, "")

    def test_an_answer_of_spaces_is_empty(self, tmp_path):
        path = written(
            tmp_path / "t.jsonl", {"id": "1", "system_prompt": "", "question": "Q", "response": " \n"}
        )
        assert next(read_traces(path)).outcome is Outcome.EMPTY

    def test_sharegpt_of_several_turns_without_id(self, tmp_path):
        turns = [("system", "S"), ("human", "Q1"), ("gpt", "A1"), ("human", "Q2"), ("gpt", "A2")]
        row = {"conversations": [{"from": name, "value": text} for name, text in turns]}
        path = written(tmp_path / "chat.jsonl", row, row)
        first, second = read_traces(path)
        assert [message.role for message in first.messages] == ["system", "user", "assistant"] + [
            "user",
            "assistant",
        ]
        assert (first.answer, first.id, second.id) == ("A2", "chat-0", "chat-1")

    def test_ids_may_be_numbers(self, tmp_path):
        path = written(tmp_path / "t.jsonl", {"id": 7, "messages": [{"role": "user", "content": "Q"}]})
        assert next(read_traces(path)).id == "7"

    def test_schemas_may_be_mixed(self, tmp_path):
        native = to_json(a_trace(id="n"))
        path = written(
            tmp_path / "t.jsonl", native, {"id": "m", "messages": [{"role": "user", "content": "Q"}]}
        )
        assert [trace.id for trace in read_traces(path)] == ["n", "m"]

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (
                {"id": "1", "question": "Q"},
                "column 'response' is missing, among id, question; accepted: native",
            ),
            ({"text": "Q"}, "column 'messages' is missing, among text; accepted: native"),
            ({"messages": "Q"}, "column 'messages' must be a list of turns, not 'Q'"),
            ({"messages": [{"role": "user"}]}, r"messages\[0\]: 'content' is missing"),
            ({"conversations": [{"from": ["x"], "value": ""}]}, r"conversations\[0\]: unknown role \['x'\]"),
            ({"conversations": [{"from": "gpt", "value": 3}]}, "'content' must be text, not 3"),
            ({"id": "1", "system_prompt": "", "question": None, "response": "A"}, "'question' is empty"),
        ],
    )
    @pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
    def test_errors_name_file_row_and_column(self, tmp_path, row, message, suffix):
        path = tmp_path / f"t{suffix}"
        if suffix == ".jsonl":
            written(path, row)
            where = f"{path}:1: "
        else:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
            where = f"{path}: row 0: "
        with pytest.raises(RecordError, match=where + ".*" + message):
            list(read_traces(path))


class TestParquet:
    def test_unknown_columns_are_kept(self, tmp_path):
        row = {"id": "a", "system_prompt": None, "question": "Q", "response": "A"}
        row |= {"score": 0.5, "extra": "plain"}
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "t.parquet")
        (trace,) = read_traces(tmp_path / "t.parquet")
        assert trace.extra == {"score": 0.5, "extra": "plain"}

    def test_a_truncated_file(self, tmp_path):
        path = tmp_path / "t.parquet"
        write_traces(path, [a_trace()] * 50)
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(RecordError, match=f"{path}: damaged or no Parquet file"):
            list(read_traces(path))

    def test_a_damaged_row_group(self, tmp_path):
        path = tmp_path / "t.parquet"
        write_traces(path, [a_trace(id=str(number)) for number in range(50)])
        whole = bytearray(path.read_bytes())
        whole[4:60] = bytes(56)
        path.write_bytes(whole)
        with pytest.raises(RecordError, match=f"{path}: damaged"):
            list(read_traces(path))

    @given(data=st.data())
    def test_any_damage_is_an_error_of_ours_or_harmless(self, parquet_bytes, data):
        """Cut anywhere and with bytes changed anywhere: never an error that does not name the file."""
        damaged = bytearray(parquet_bytes[: data.draw(st.integers(0, len(parquet_bytes)))])
        for place in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=4)):
            damaged[place : place + 1] = data.draw(st.binary(min_size=1, max_size=1))
        read_or_named(bytes(damaged), ".parquet")

    @pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
    def test_half_a_character_pair(self, tmp_path, suffix):
        trace = a_trace(messages=(Message("user", "Q"), Message("assistant", "cut \ud83d")))
        path = tmp_path / f"t{suffix}"
        if suffix == ".jsonl":
            write_traces(path, [trace])
            assert list(read_jsonl(path, Trace)) == [trace]
        else:
            with pytest.raises(RecordError, match="trace 'a' holds half a character pair"):
                write_traces(path, [trace])
            assert not path.exists()


class TestRefusals:
    def test_openorca_holds_one_turn(self, tmp_path):
        trace = a_trace(messages=(Message("user", "Q"), Message("assistant", "A")) * 2)
        with pytest.raises(RecordError, match="trace 'a': openorca holds one question"):
            write_traces(tmp_path / "t.jsonl", [trace], "openorca")

    def test_openorca_holds_no_weights(self, tmp_path):
        trace = a_trace(messages=(Message("user", "Q"), Message("assistant", "A", 0.0)))
        with pytest.raises(RecordError, match="trace 'a': openorca holds no weights"):
            write_traces(tmp_path / "t.jsonl", [trace], "openorca")

    def test_schema_and_suffix(self, tmp_path):
        with pytest.raises(RecordError, match="unknown schema 'alpaca'; known: native"):
            write_traces(tmp_path / "t.jsonl", [], "alpaca")
        with pytest.raises(RecordError, match="unknown suffix"):
            write_traces(tmp_path / "t.csv", [])
        with pytest.raises(RecordError, match=r"read and not written; name it t\.jsonl"):
            write_traces(tmp_path / "t.jsonl.gz", [])
        with pytest.raises(RecordError, match="unknown suffix"):
            list(read_traces(tmp_path / "t.csv"))

    def test_no_file(self, tmp_path):
        for name in ("no.jsonl", "no.parquet"):
            with pytest.raises(FileNotFoundError, match=name):
                list(read_traces(tmp_path / name))


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.exists(), reason="no data beside the repository")
def test_openorca_as_published(tmp_path):
    traces = list(read_traces(DATA / "openorca/gpt4_600.jsonl", teacher="gpt-4"))
    assert len(traces) == 600
    assert {trace.collection for trace in traces} == {"flan", "niv", "t0", "cot"}
    assert {trace.outcome for trace in traces} == {Outcome.OK}
    write_traces(tmp_path / "again.parquet", traces, "openorca")
    assert list(read_traces(tmp_path / "again.parquet", teacher="gpt-4")) == traces
