"""Traces to a tokenizer and token stores; the validation part is held out of both."""

import collections
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from orca_jax.artifacts import ArtifactError, read_manifest
from orca_jax.data import prepared, tokens
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.tokenizer import TokenizerError
from orca_jax.data.tokens import TokenStore
from orca_jax.experiments import collect, prepare
from orca_jax.queries.agreement import agrees

NAMES = ("apprentice", "expert", "validation")


def store_bytes(workdir):
    """All that a store is, by file."""
    files = sorted((workdir / "tokens").rglob("*"))
    return {str(f.relative_to(workdir)): f.read_bytes() for f in files if f.is_file() and f.suffix != ".json"}


def ids(workdir, name):
    store = TokenStore(workdir / "tokens" / name)
    return {store[i]["id"] for i in range(len(store))}


def test_stores_hold_every_trace_once(finished, mini):
    held = {trace.id for name in NAMES[:2] for trace in prepared.part(mini(), finished, name)}
    validation = ids(finished, "validation")
    assert ids(finished, "apprentice") | ids(finished, "expert") == held
    assert not held & validation
    every = {trace.id for name in NAMES[:2] for trace in prepared.read(finished, name)}
    assert held | validation == every


def test_no_validation_query_is_trained_on_by_any_teacher(finished):
    def queries(name):
        return {example.split("/")[0] for example in ids(finished, name)}

    assert queries("validation")
    assert not queries("validation") & (queries("apprentice") | queries("expert"))


def test_tokens_decode_to_the_trace(finished):
    tokenizer = tokenizers.load(finished / "tokenizer")
    by_id = {trace.id: trace for trace in prepared.read(finished, "expert")}
    store = TokenStore(finished / "tokens" / "expert")
    for index in range(0, len(store), 10):
        example = store[index]
        answer = tokenizer.decode(example["tokens"][example["weights"] > 0].tolist())
        assert answer == by_id[example["id"]].answer


def test_tokenizer_is_trained_on_the_training_part(copied, mini, monkeypatch):
    config, workdir, train, texts = mini(), copied("tokenizer"), tokenizers.train, []

    def listening(given, *rest):
        texts.extend(given)
        return train(texts, *rest)

    monkeypatch.setattr(tokenizers, "train", listening)
    prepare.run(config, workdir)
    assert tokenizers.load(workdir / "tokenizer").vocab_size == config.student.vocab_size
    assert len(texts) == sum(len(list(prepared.part(config, workdir, name))) for name in NAMES[:2])
    held = list(prepared.part(config, workdir, "validation"))
    assert held
    for trace in held:
        assert not any(trace.messages[1].content in text for text in texts)


def test_tokenizer_sees_a_sample_of_all_kinds_of_traces(copied, mini, monkeypatch):
    """Traces lie family by family; the first of them alone would give a tokenizer of one family."""
    config, workdir = mini(), copied("tokenizer")
    monkeypatch.setattr(prepared, "TRAINING_TEXTS", 40)
    texts = list(prepared._texts(config, workdir))
    assert len(texts) == 40
    assert texts == list(prepared._texts(config, workdir))
    for words in ("truth", "turn", "How many", "parenthes"):
        assert any(words in text for text in texts), words


def test_prepared_again_the_bytes_are_the_same(copied, finished, mini):
    workdir = copied("tokenizer", "tokens")
    prepare.run(mini(), workdir)
    assert store_bytes(workdir) == store_bytes(finished)


def test_stopped_between_shards_and_with_two_workers_the_bytes_are_the_same(copied, mini, monkeypatch):
    """With shards of 32 traces: the first run dies at its third shard, the second goes on with it."""
    monkeypatch.setattr(tokens, "SHARD_SIZE", 32)
    workdir = copied("tokens")
    prepare.run(mini(), workdir)
    expected = store_bytes(workdir)
    assert sum("array_record" in name for name in expected) > 8
    workdir.joinpath("tokens").rename(workdir / "unbroken")
    written, write = [], tokens.write_shard

    def dying(directory, shards, encode, job, **options):
        if len(written) == 2:
            raise OSError("no space left")
        written.append(job)
        return write(directory, shards, encode, job, **options)

    monkeypatch.setattr(tokens, "write_shard", dying)
    with pytest.raises(OSError, match="no space left"):
        prepare.run(mini(), workdir)
    monkeypatch.setattr(tokens, "write_shard", write)
    prepare.run(mini(), workdir, workers=2)
    assert store_bytes(workdir) == expected


def test_validation_can_be_left_out(copied, mini):
    workdir = copied("tokens", "tokenizer")
    prepare.run(mini(**{"data.validation_fraction": 0.0}), workdir)
    assert not (workdir / "tokens" / "validation").exists()
    assert read_manifest(workdir / "tokens/apprentice")["counts"]["examples"] == len(
        list(prepared.read(workdir, "apprentice"))
    )


def test_unfinished_store_of_other_settings_is_refused(copied, mini):
    workdir = copied()
    (workdir / "tokens/expert/manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"layout: 'orca' there, 'chatml' now|seed: 0 there, 1 now"):
        prepare.run(mini(seed=1), workdir)


def untrained(copied):
    """A workdir whose prepare has stopped before its last store."""
    return copied("training", "evaluation", "tokens/validation/manifest.json")


@pytest.mark.parametrize(
    ("change", "made_again"),
    [
        ({"data.supervise": "last"}, {"tokens"}),
        ({"data.validation_fraction": 0.1}, {"tokenizer", "tokens"}),  # which is trained on the training part
        ({"data.layout": "chatml"}, {"tokenizer", "tokens"}),
    ],
)
def test_until_a_student_is_trained_what_other_settings_prepared_is_made_again(
    copied, mini, caplog, change, made_again
):
    workdir = untrained(copied)
    prepare.run(mini(**change), workdir)
    again = {message.partition(" is of other")[0] for message in caplog.messages if "removed" in message}
    assert {Path(name).relative_to(workdir).parts[0] for name in again} == made_again
    assert re.search(rf"{next(iter(change)).rpartition('.')[2]}|control", caplog.text)
    tokens = read_manifest(workdir / "tokens/expert")
    assert tokens["inputs"]["tokenizer"] == tokenizers.load(workdir / "tokenizer").fingerprint


def test_what_a_student_was_trained_on_is_refused(copied, mini):
    workdir = copied()
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(ArtifactError, match=r"supervise: 'all' there, 'last' now"):
        prepare.run(mini(**{"data.supervise": "last"}), workdir)
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def test_a_tokenizer_that_does_not_fit_leaves_nothing_in_the_way_of_one_that_is_used_as_it_is(
    copied, finished, mini
):
    workdir = copied("training", "evaluation", "tokens", "tokenizer", "cards")
    model = finished / "tokenizer" / tokenizers.MODEL_FILE
    given = {"data.tokenizer": str(model)}
    with pytest.raises(TokenizerError, match=r"set student\.vocab_size=512"):
        prepare.run(mini(**given, **{"student.vocab_size": 640}), workdir)
    prepare.run(mini(**given), workdir)
    assert read_manifest(workdir / "tokenizer")["provenance"]["vocab_size"] == 512
    assert (workdir / "tokenizer" / tokenizers.MODEL_FILE).read_bytes() == model.read_bytes()
    first, second = (TokenStore(w / "tokens/expert") for w in (workdir, finished))
    np.testing.assert_array_equal(first[0]["tokens"], second[0]["tokens"])


def test_without_traces_it_says_what_is_missing(tmp_path, mini):
    with pytest.raises(ArtifactError, match=r"traces/apprentice has no manifest\.json"):
        prepare.run(mini(), tmp_path)


# --- Flags and cards


def test_flags_stand_beside_every_trace(finished):
    for name in NAMES[:2]:
        traces, entries = list(prepared.read(finished, name)), list(prepared.flagged(finished, name))
        assert [(entry.id, entry.query_id) for entry in entries] == [(t.id, t.query_id) for t in traces]
        counts = read_manifest(finished / "quality" / name)["counts"]
        found = collections.Counter(flag for entry in entries for flag in entry.flags)
        assert {flag: count for flag, count in counts["flags"].items() if count} == dict(found)
        assert (counts["left_out"], counts["kept"]) == ({}, len(traces))


def test_a_filter_leaves_out_what_it_says_and_counts_it(copied, mini):
    """The apprentice errs: what disagrees with the puzzle's target is kept from tokenizer and stores."""
    config, workdir = mini(), copied("quality", "tokenizer", "tokens", "cards")
    teacher = dataclasses.replace(config.teachers[0], filters=("disagrees",))
    config = dataclasses.replace(config, teachers=(teacher, config.teachers[1]))
    prepare.run(config, workdir)
    entries = list(prepared.flagged(workdir, "apprentice"))
    wrong = {entry.id for entry in entries if "disagrees" in entry.flags}
    assert wrong
    assert {entry.id for entry in entries if entry.left_out} == wrong
    held = ids(workdir, "apprentice") | ids(workdir, "validation")
    assert not wrong & held
    assert held >= {entry.id for entry in entries} - wrong
    counts = read_manifest(workdir / "quality/apprentice")["counts"]
    assert counts["left_out"] == {"disagrees": len(wrong)}
    card = re.sub(" +", " ", (workdir / "cards/apprentice/README.md").read_text())
    assert f"| left out: disagrees | {len(wrong)} |" in card


def few(mini, tmp_path, **teacher):
    """A prepared workdir of one teacher, `t`, with its config."""
    stage = [{"name": "t", "datasets": {"t": 1.0}, "steps": 1}]
    config = mini(teachers=[{"name": "t", **teacher}], curriculum=stage, **{"data.validation_fraction": 0.1})
    collect.run(config, tmp_path)
    prepare.run(config, tmp_path)
    return config, tmp_path


def test_of_several_samples_one_is_kept_of_those_that_agree(mini, tmp_path):
    _, workdir = few(mini, tmp_path, error_rate=0.3, samples=3, filters=("outvoted", "spare"))
    every, entries = list(prepared.read(workdir, "t")), list(prepared.flagged(workdir, "t"))
    kept = [trace for trace, entry in zip(every, entries) if not entry.left_out]
    queries = {trace.query_id for trace in every}
    assert 0.6 * len(queries) < len(kept) == len({trace.query_id for trace in kept}) < len(queries)
    assert {trace.sample for trace in kept} >= {0, 1}
    right = [agrees(trace.answer, trace.target, trace.messages[-2].content) for trace in kept]
    assert sum(right) / len(right) > 0.75
    counts = read_manifest(workdir / "quality/t")["counts"]
    assert {"outvoted", "spare"} <= counts["flags"].keys()
    assert sum(counts["left_out"].values()) + len(kept) == len(every) == 3 * len(queries)
    card = re.sub(" +", " ", (workdir / "cards/t/README.md").read_text())
    assert f"| left out: outvoted | {counts['left_out']['outvoted']} |" in card


def test_examples_come_before_the_question_and_none_of_validation(mini, tmp_path):
    config, workdir = few(mini, tmp_path, shots=2, error_rate=0.3, filters=("disagrees",))
    by_question = {trace.messages[1].content: trace for trace in prepared.read(workdir, "t")}
    left_out = {entry.id for entry in prepared.flagged(workdir, "t") if entry.left_out}
    assert left_out
    shown = collections.Counter()
    for name in ("t", "validation"):
        made = list(prepared.part(config, workdir, name))
        assert {trace.id for trace in made} == ids(workdir, name)
        for trace in made:
            solved, _, own = trace.messages[1].content.rpartition("\n\nYour turn:\n")
            assert by_question[own].id == trace.id
            examples = re.findall(r"Example:\n(.*?)\nAnswer: (.*?)(?=\n\nExample:|\Z)", solved, re.DOTALL)
            shown[len(examples)] += 1
            for question, answer in examples:
                example = by_question[question]
                assert example.answer == answer
                assert (example.task, example.system_message_id) == (trace.task, trace.system_message_id)
                assert example.id not in left_out | {trace.id}
                assert not prepared.held_out(example.query_id, config)
    short = read_manifest(workdir / "quality/t")["counts"]["short_of_shots"]
    assert 0 < shown[0] + shown[1] <= short < 20
    assert shown[2] > 100 - short
    store, tokenizer = TokenStore(workdir / "tokens/t"), tokenizers.load(workdir / "tokenizer")
    text = tokenizer.decode(store[0]["tokens"].tolist())
    answer = tokenizer.decode(store[0]["tokens"][store[0]["weights"] > 0].tolist())
    assert (text.count("Example:"), text.count("Your turn:")) == (2, 1)
    assert answer == next(iter(prepared.part(config, workdir, "t"))).answer


def test_other_filters_in_the_same_workdir_are_refused(copied, mini):
    config, workdir = mini(), copied()
    teacher = dataclasses.replace(config.teachers[0], filters=("refusal",))
    with pytest.raises(ArtifactError, match=r"filters\[0\]: absent there, 'refusal' now"):
        prepare.run(dataclasses.replace(config, teachers=(teacher, config.teachers[1])), workdir)


def test_every_teacher_has_a_card(finished):
    for name in NAMES[:2]:
        card = (finished / "cards" / name / "README.md").read_text()
        assert card.startswith(f"# {name}")
        trained = read_manifest(finished / "tokens" / name)["counts"]["examples"]
        assert f"| {trained} |" in re.sub(" +", " ", card)
        assert (finished / "cards" / name / "lengths.png").exists()
