"""Traces in other forms hold the same conversations."""

import dataclasses

import pytest

from orca_jax import conversations, files
from orca_jax.experiments import export, prepare
from orca_jax.records import Outcome, RecordError


@pytest.mark.parametrize("schema", ["native", "openorca", "messages", "sharegpt"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_files(finished, tmp_path, schema, suffix):
    out = tmp_path / f"expert{suffix}"
    expected = list(prepare.read(finished, "expert"))
    assert export.export(finished / "traces/expert", schema, out) == len(expected)
    written = list(conversations.read_traces(out))
    assert [trace.id for trace in written] == [trace.id for trace in expected]
    assert [trace.answer for trace in written] == [trace.answer for trace in expected]
    assert (tmp_path / "expert-card/README.md").read_text().startswith("# expert")


def test_failed_requests_are_no_answers_in_a_schema_that_cannot_say_so(finished, tmp_path):
    first, second, *_ = prepare.read(finished, "expert")
    files.write_jsonl(tmp_path / "in.jsonl", [dataclasses.replace(first, outcome=Outcome.ERROR), second])
    assert export.export(tmp_path / "in.jsonl", "messages", tmp_path / "out.jsonl") == 1
    assert export.export(tmp_path / "in.jsonl", "native", tmp_path / "all.jsonl") == 2


def test_a_tfds_data_set_of_what_filters_kept(finished, tmp_path, capsys):
    import tensorflow_datasets as tfds

    out = tmp_path / "set"
    export.main([f"--traces={finished}/traces/expert", f"--to={out}", "--kept"])
    kept = [entry for entry in prepare.flagged(finished, "expert") if entry.left_out is None]
    assert f"{len(kept)} traces: {out}" in capsys.readouterr().out
    source = tfds.builder_from_directory(str(out)).as_data_source("train")
    assert [example["id"].decode() for example in source] == [entry.id for entry in kept]


def test_filters_that_were_not_applied_are_named(copied, tmp_path):
    workdir = copied("quality")
    with pytest.raises(RecordError, match=r"run experiments\.prepare first"):
        export.export(workdir / "traces/expert", "native", tmp_path / "x.jsonl", kept=True)


def test_a_mistake_ends_the_program_with_its_message(finished, capsys):
    with pytest.raises(SystemExit):
        export.main([f"--traces={finished}/traces/expert", "--to=x.csv"])
    assert "unknown suffix; name it .jsonl" in capsys.readouterr().err
