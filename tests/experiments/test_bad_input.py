"""What is wrong in users' files: a clear error or a counted drop, and nothing half-made."""

import json
import re
import resource
import shutil

import pyarrow
import pyarrow.parquet
import pytest

from orca_jax import artifacts, cli
from orca_jax.config import load
from orca_jax.configs import openorca
from orca_jax.data import prepared
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.tokens import TokenStore
from orca_jax.experiments import collect, prepare
from orca_jax.training import run as training

GOOD = {"id": "flan.1", "system_prompt": "Be kind.", "question": "What is 2 + 2?", "response": "It is 4."}
SMALL = {"student.vocab_size": 300, "data.validation_fraction": 0.0}


@pytest.fixture
def config(tmp_path):
    """`config(content, suffix)`: configs/openorca.py on a trace file of these rows or bytes."""

    def make(content, suffix=".jsonl", teacher=None, **changes):
        path = tmp_path / f"gpt4{suffix}"
        if isinstance(content, list):
            content = b"".join(json.dumps(row).encode() + b"\n" for row in content)
        path.write_bytes(content)
        made = openorca.get_config("runlocal")
        made.teachers[0]["path"] = str(path)
        made.teachers[0].update(teacher or {})
        made.update_from_flattened_dict(changes)
        return load(made)

    return make


def failure(work, capsys):
    """What a program says that ends with an error which the user can mend."""
    with pytest.raises(SystemExit) as ended:
        cli.checked(work)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def without(*columns):
    return {key: value for key, value in GOOD.items() if key not in columns}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([GOOD, without("response")], "gpt4.jsonl:2: column 'response' is missing"),
        ([GOOD, without("system_prompt")], "gpt4.jsonl:2: column 'system_prompt' is missing"),
        ([GOOD, {"text": "hello"}], "gpt4.jsonl:2: column 'messages' is missing, among text"),
        ([GOOD, {**GOOD, "question": None}], "gpt4.jsonl:2: column 'question' is empty"),
        ([GOOD, {**GOOD, "question": 5}], "gpt4.jsonl:2: column 'question' must be text, not 5"),
        ([GOOD, None], "gpt4.jsonl:2: a row must be a JSON object, not None"),
        (json.dumps(GOOD).encode() + b'\n{"id": "2", "sys', "gpt4.jsonl:2: not a JSON object on one line"),
        (b"\n" + json.dumps(GOOD).encode() + b'\n{"id": "\xff"}', "gpt4.jsonl:3: not UTF-8 (byte 9"),
        (b"", "gpt4.jsonl: no traces in it"),
    ],
)
def test_a_broken_file_is_an_error_that_names_the_line(config, tmp_path, capsys, content, said):
    given = config(content)
    assert said in failure(lambda: collect.run(given, tmp_path / "w"), capsys)
    assert not (tmp_path / "w/traces/gpt4/manifest.json").exists()
    # Mended, the same command goes on.
    collect.run(config([GOOD]), tmp_path / "w")
    assert artifacts.read_manifest(tmp_path / "w/traces/gpt4")["counts"]["traces"] == 1


def test_a_parquet_file_cut_short(config, tmp_path, capsys):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD] * 100), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    given = config(whole[: len(whole) // 2], ".parquet")
    assert "gpt4.parquet: damaged or no Parquet file" in failure(
        lambda: collect.run(given, tmp_path / "w"), capsys
    )


def rows(count):
    for i in range(count):
        yield {
            **GOOD,
            "id": f"flan.{i}",
            "question": f"What is {i} + {i % 7}?",
            "response": f"It is {i + i % 7}.",
        }


def test_empty_answers_and_nulls_are_counted_drops(config, tmp_path, caplog):
    empty = [{**GOOD, "id": f"flan.e{i}", "response": value} for i, value in enumerate(("", None, "  "))]
    no_system = {**GOOD, "id": "flan.n", "system_prompt": None}
    given = config([*rows(100), *empty, no_system], **SMALL)
    collect.run(given, tmp_path / "w")
    prepare.run(given, tmp_path / "w")
    counts = artifacts.read_manifest(tmp_path / "w/tokens/gpt4")["counts"]
    assert counts["examples"] == 101
    assert counts["dropped"] == {"empty": 3}


def turns(*texts, **keys):
    """A conversation of these texts in turn; `keys` are the first answer's."""
    made = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [made[0], {**made[1], **keys}, *made[2:]]


def learnt(workdir, id):
    """The text that carries loss in an example."""
    store, tokenizer = TokenStore(workdir / "tokens/gpt4"), tokenizers.load(workdir / "tokenizer")
    (example,) = (store[i] for i in range(len(store)) if store[i]["id"] == id)
    return tokenizer.decode(example["tokens"][example["weights"] > 0].tolist())


LEARNT = [
    ({"messages": turns("q one", "wrong", "q two", "right", weight=0)}, "right"),
    ({"messages": turns("q three", "wrong", "q four", "right", train=False)}, "right"),
    ({"messages": turns("q five", " ", "q six", "right")}, "right"),
    ({"system": "Be a pirate.", "messages": turns("q one", "arr")}, "arr"),
    ({"question": "not read", "response": "nor this", "conversations": turns("q", "said")}, "said"),
    ({"instruction": "q seven", "input": "1", "output": "right"}, "right"),
    ({"prompt": turns("q eight", "earlier")[:1], "completion": turns("", "right")[1:]}, "right"),
]


@pytest.mark.parametrize("layout", ["orca", "chatml"])
def test_the_loss_is_where_the_file_says(config, tmp_path, layout):
    odd = [{**row, "id": f"w{number}"} for number, (row, _) in enumerate(LEARNT)]
    given = config([*rows(40), *odd], **SMALL | {"student.vocab_size": 320, "data.layout": layout})
    collect.run(given, tmp_path / "w")
    prepare.run(given, tmp_path / "w")
    assert [learnt(tmp_path / "w", row["id"]) for row in odd] == [answer for _, answer in LEARNT]


BAD_ROWS = [
    ({"messages": [*turns("q", "a"), *turns("q", "a")[1:]]}, "got user, assistant, assistant"),
    ({"messages": turns("q", "a")[1:]}, "got assistant"),
    (
        {"messages": turns("q", None, "tool says sun", "sunny", tool_calls=[{"type": "function"}])},
        "'tool_calls'",
    ),
    ({"messages": turns("q \ud83d half", "a")}, "half a surrogate pair"),
    ({"id": "\ude00", "messages": turns("q", "a")}, "half a surrogate pair"),
    ({"messages": 3}, "must be a list of turns"),
    (b"{", "not a JSON object on one line"),
]


def test_bad_rows_are_counted_named_and_left_out(config, tmp_path, caplog, capsys):
    bad = [row if isinstance(row, bytes) else json.dumps(row).encode() for row, _ in BAD_ROWS]
    lines = b"\n".join([*bad, *(json.dumps(row).encode() for row in rows(40))])
    given = config(lines, teacher={"malformed": 0.2}, **SMALL)
    collect.run(given, tmp_path / "w")
    counts = artifacts.read_manifest(tmp_path / "w/traces/gpt4")["counts"]
    assert (counts["traces"], counts["read"], counts["malformed"]) == (40, 40, len(bad))
    for number, (place, (_, reason)) in enumerate(zip(counts["malformed_places"], BAD_ROWS, strict=True), 1):
        assert f"gpt4.jsonl:{number}: " in place
        assert reason in place
    assert "left out 7 malformed rows of 47 (15 %)" in caplog.text
    prepare.run(given, tmp_path / "w")
    assert "gpt4: 40 of 47 train; 7 (14.9 %) left out: malformed" in caplog.text
    strict = config(lines, teacher={"malformed": 0.1}, **SMALL)
    said = failure(lambda: collect.run(strict, tmp_path / "strict"), capsys)
    assert "7 rows are malformed of 47 read, more than the share 0.1 that teachers[].malformed allows" in said
    assert "gpt4.jsonl:1: " in said


def test_an_answer_without_loss_is_no_example_for_others(config, tmp_path):
    wrong = {"id": "w", "system": "Be kind.", "messages": turns("q", "wrong", weight=0)}
    given = config([*rows(40), wrong], teacher={"shots": 4}, **SMALL | {"student.vocab_size": 320})
    collect.run(given, tmp_path / "w")
    prepare.run(given, tmp_path / "w")
    shown = {trace.id: trace.messages[-2].content for trace in prepared.part(given, tmp_path / "w", "gpt4")}
    assert shown["w"].count("Example:") == 4
    assert not any("wrong" in text for text in shown.values())


def test_turns_of_one_role_are_joined_if_the_config_says_so(config, tmp_path):
    row = {"id": "w", "messages": [{"role": "user", "content": "one"}, *turns("two", "right")]}
    given = config([row], teacher={"join_turns": True}, **SMALL)
    collect.run(given, tmp_path / "w")
    (trace,) = prepared.read(tmp_path / "w", "gpt4")
    assert [message.content for message in trace.messages] == ["one\n\ntwo", "right"]


def test_half_a_surrogate_pair_in_a_reply_is_dropped_before_it_is_tokenised(config, tmp_path):
    """An API may answer with one; what was paid for is not the end of the run."""
    given = config([*rows(40)], **SMALL)
    collect.run(given, tmp_path / "w")
    path = tmp_path / "w/traces/gpt4/traces.jsonl"
    first = path.read_text().splitlines()[0].replace("flan.0", "flan.x").replace("What is", "What was")
    path.write_text(path.read_text() + first.replace("It is", "\\ud83d") + "\n")
    prepare.run(given, tmp_path / "w")
    counts = artifacts.read_manifest(tmp_path / "w/tokens/gpt4")["counts"]
    assert (counts["examples"], counts["dropped"]) == (40, {"half a surrogate pair": 1})


@pytest.mark.parametrize(
    ("changes", "said", "counts"),
    [
        (
            {"data.overlong": "drop"},
            "gpt4: 40 of 44 train; 3 (6.8 %) longer than a row, left out (raise data.row_length",
            {"trained": 40, "cut": 0, "too_long": 3, "nothing_supervised": 1},
        ),
        (
            {"data.overlong": "truncate"},
            "gpt4: 42 of 44 train; 2 (4.5 %) cut at a row's end (raise data.row_length",
            {"trained": 42, "cut": 2, "answer_cut_away": 1, "nothing_supervised": 1},
        ),
    ],
)
def test_what_never_trains_is_said(config, tmp_path, caplog, changes, said, counts):
    long = " ".join(f"{number}" for number in range(400))
    odd = [
        {"id": "a", "messages": turns("q one", long)},
        {"id": "b", "messages": turns("q two", f"{long}!")},
        {"id": "c", "messages": turns(f"{long}?", "a")},
        {"id": "d", "messages": turns("q three", "wrong", weight=0)},
    ]
    given = config([*rows(40), *odd], **SMALL, **changes)
    collect.run(given, tmp_path / "w")
    prepare.run(given, tmp_path / "w")
    (warned,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert warned.startswith(said)
    assert artifacts.read_manifest(tmp_path / "w/cards/gpt4")["counts"] == {"examples": 44, **counts}
    card = (tmp_path / "w/cards/gpt4/README.md").read_text()
    assert re.search(rf"\| trained on +\| +{counts['trained']} \|", card)
    assert warned.removeprefix("gpt4: ") in card
    described = training.describe(training.row_builder(given, tmp_path / "w"), given.data.overlong, ["gpt4"])[
        "gpt4"
    ]
    assert {name: described[name] for name in counts} == counts
    assert described["left_out"] == 44 - counts["trained"]


def test_tokens_that_cannot_be_written(config, tmp_path, capsys):
    """A limit on the size of files fails a write as a full disk does."""
    given = config([*rows(200)], **SMALL)
    collect.run(given, tmp_path / "w")
    shutil.copytree(tmp_path / "w", tmp_path / "unbroken")
    prepare.run(given, tmp_path / "unbroken")
    shutil.copytree(tmp_path / "unbroken/quality", tmp_path / "w/quality")  # which is larger than the tokens
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, hard))
    try:
        said = failure(lambda: prepare.run(given, tmp_path / "w"), capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in said
    assert f"{tmp_path}/w/to" in said
    assert not list((tmp_path / "w").rglob("*.tmp"))
    assert not list((tmp_path / "w/tokens").rglob("*array_record*"))
    prepare.run(given, tmp_path / "w")
    for path in (tmp_path / "unbroken/tokens").rglob("*array_record*"):
        assert (tmp_path / "w" / path.relative_to(tmp_path / "unbroken")).read_bytes() == path.read_bytes()
