"""The report of a finished run, by the program."""

import json

import pytest

from orca_jax.artifacts import plain
from orca_jax.experiments import report
from orca_jax.reporting import report as page
from orca_jax.reporting.report_sources import Run


def test_a_finished_run_has_a_page_with_questions_and_config(copied, capsys):
    workdir = copied()
    report.PROGRAM.start([f"--workdir={workdir}"])
    report.main()
    text = (workdir / page.FILE).read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == str(workdir / page.FILE)
    assert "text is not kept" not in text
    assert 'class="missing"' not in text
    assert "procedural oracles that know each puzzle" in text
    assert len(text) < 3_000_000


def test_questions_are_those_of_the_evaluation(finished):
    texts = page.questions(Run("mini", finished))
    lines = (finished / "evaluation/puzzles-message-7/items.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    assert texts.keys() == {(item["benchmark"], item["task"], item["id"]) for item in items}


def test_settings_differ_from_the_default_where_the_config_says_so(mini):
    kept = plain(mini())
    found = {key: (value, default) for key, value, default in page.settings(kept)}
    assert found["teachers[0].brevity"] == ("0.1", "0.0")
    assert found["student.vocab_size"][1] == page.NO_DEFAULT
    changed = {key for key, (value, default) in found.items() if value != default}
    assert "train.log_every" in changed
    assert changed.isdisjoint({"seed", "benchmarks", "evaluation.modes"})


def test_a_config_of_another_version_is_shown_without_defaults():
    (found,) = page.settings({"former": [1]})
    assert found == ("former", "[1]", page.NO_DEFAULT)


def test_what_is_no_workdir_is_one_message(tmp_path, capsys):
    report.PROGRAM.start([f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit):
        report.main()
    assert "error:" in (message := capsys.readouterr().err)
    assert "no workdir of a run or of an arm set" in message
