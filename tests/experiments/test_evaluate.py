"""Evaluations are kept as they come, and go on where they stopped."""

import json
import re
import shutil

import pytest

from orca_jax.artifacts import ArtifactError
from orca_jax.evaluation import model, run
from orca_jax.evaluation.run import REPLIES
from orca_jax.experiments import evaluate, tables
from orca_jax.reporting import run_tables

NAME = "evaluation/puzzles-message-7"


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_every_puzzle_is_asked_under_every_message(finished, mini):
    puzzles = run.test_puzzles(mini())
    config = mini()
    assert len(puzzles) == len(config.puzzles.families) * config.evaluation.per_family
    for message in config.evaluation.messages:
        directory = finished / "evaluation" / f"puzzles-message-{message}"
        rows = [json.loads(line) for line in lines(directory / "items.jsonl")]
        assert {row["id"] for row in rows} == {puzzle.id for puzzle in puzzles}
        assert {row["system_message_id"] for row in rows} == {message}
        assert len(lines(directory / REPLIES)) == len(rows) == len(puzzles)
        assert (directory / "scores.json").is_file()


def test_a_stopped_evaluation_goes_on_to_the_same_scores(copied, finished, mini, caplog):
    workdir = copied(f"{NAME}/manifest.json", f"{NAME}/items.jsonl", f"{NAME}/scores.json")
    kept = (workdir / NAME / REPLIES).read_bytes()[:-700]  # the last lines lost, one of them torn
    (workdir / NAME / REPLIES).write_bytes(kept)
    with caplog.at_level("INFO"):
        evaluate.run(mini(), workdir)
    assert re.search(r"puzzles-message-7: n 12, accuracy \d+\.\d (± \d|\[\d)", caplog.text), caplog.text
    assert sorted(lines(workdir / NAME / REPLIES)) == sorted(lines(finished / NAME / REPLIES))
    for name in ("items.jsonl", "scores.json"):
        assert (workdir / NAME / name).read_bytes() == (finished / NAME / name).read_bytes()


def test_a_finished_evaluation_loads_no_student(finished, mini, monkeypatch):
    def never(*_):
        raise AssertionError("there is nothing to ask")

    monkeypatch.setattr(model, "load_trained", never)
    evaluate.run(mini(), finished)


def test_other_settings_are_refused_and_the_change_named(finished, mini):
    with pytest.raises(ArtifactError, match=r"evaluation.max_tokens: 16 there, 17 now"):
        evaluate.run(mini(**{"evaluation.max_tokens": 17}), finished)


def test_the_number_type_counts_and_is_said(copied, finished, mini):
    """A CPU's is float32, as it was before there was a choice."""
    assert json.loads((finished / NAME / "scores.json").read_text())["dtype"] == "float32"
    evaluate.run(mini(**{"evaluation.dtype": "float32"}), finished)
    config = mini(**{"evaluation.dtype": "bfloat16", "evaluation.messages": (7,)})
    with pytest.raises(ArtifactError, match=r"dtype: 'float32' there, 'bfloat16' now"):
        evaluate.run(config, finished)
    workdir = copied("evaluation")
    evaluate.run(config, workdir, run.Options(limit=1))
    assert json.loads((workdir / NAME / "scores.json").read_text())["dtype"] == "bfloat16"


def test_one_more_message_is_one_more_evaluation(finished, mini, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    before = (workdir / "evaluation/puzzles-message-7/manifest.json").stat().st_mtime_ns
    evaluate.run(mini(**{"evaluation.messages": (7, 9)}), workdir)
    assert (workdir / "evaluation/puzzles-message-9/scores.json").is_file()
    assert (workdir / "evaluation/puzzles-message-7/manifest.json").stat().st_mtime_ns == before


def test_without_a_student_it_says_what_is_missing(tmp_path, mini):
    with pytest.raises(ArtifactError, match=r"training has no manifest\.json"):
        evaluate.run(mini(), tmp_path)


def test_table_has_every_family_and_says_what_the_teachers_are(finished, mini, capsys):
    text = run_tables.render(mini(), finished)
    assert text == (finished / "table.md").read_text(encoding="utf-8")
    for family in mini().puzzles.families:
        assert f"| {family} " in text
    assert "procedural oracles" in text
    assert "empty message" in text
    assert "step by step" in text


def test_items_of_a_run_are_a_frame_of_all_that_is_finished(finished, tmp_path):
    found = run_tables.items(finished)
    folders = [path.parent for path in (finished / "evaluation").rglob("items.jsonl")]
    assert set(found.evaluation) == {folder.name for folder in folders}
    assert len(found) == sum((folder / "items.jsonl").read_text().count("\n") for folder in folders)
    begun = tmp_path / "evaluation" / folders[0].name
    shutil.copytree(folders[0], begun)
    assert len(run_tables.items(tmp_path)) == (found.evaluation == begun.name).sum()
    (begun / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="no evaluation that is finished"):
        run_tables.items(tmp_path)


def test_table_without_scores_says_what_is_missing(copied, mini):
    workdir = copied(NAME)
    with pytest.raises(ArtifactError, match=r"puzzles-message-7 has no manifest\.json"):
        tables.run(mini(), workdir)


def test_table_shows_every_benchmark_in_its_modes(finished, mini, monkeypatch):
    row = {"n": 3, "accuracy": 0.5, "stderr": 0.1, "unparsed": 0.25, "chance": 0.2, "majority": None}
    group = {**row, "kind": "micro", "tasks": 1, "missing": []}
    scored = {"benchmark": "gsm8k", "mode": "robust", "tasks": {"all": row}, "groups": {"micro": group}}
    real = run_tables.scores

    def scores(workdir, name):
        if name.startswith("puzzles"):
            return real(workdir, name)
        return {"n": 2, "outcomes": {"ok": 2}} if name.startswith("vicuna") else {**scored, "asked": name}

    monkeypatch.setattr(run_tables, "scores", scores)
    config = mini(**{"benchmarks.gsm8k": "a file", "benchmarks.vicuna_prompts": "another"})
    text = run_tables.render(config, finished)
    (mode,) = config.evaluation.modes["gsm8k"]
    assert f"## gsm8k, mode `{mode}`" in text
    assert "3 of 1319 | 50.0 [12.5, 87.5]" in " ".join(text.split())
    assert "2 replies, a part of 80 (2 ok), which have no right answer" in text
    assert "Big-Bench Hard" not in text
