"""Two evaluations compared by the program."""

import json

import pytest

from orca_jax.evaluation import replies
from orca_jax.experiments import evaluate


@pytest.fixture
def scored(tmp_path):
    """Directories of two scored files of replies: the second is right where the first is wrong, and more."""
    for name, right in (("first", {0}), ("second", set(range(1, 12)))):
        rows = [
            {
                "task": task,
                "id": i,
                "target": "(B)",
                "reply": f"The answer is ({'B' if i in right else 'A'}).",
            }
            for task in ("snarks", "navigate")
            for i in range(12)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        replies.score("bbh", "answer_is", path, tmp_path / name)
    return tmp_path


def compare(folder, *arguments):
    evaluate.PROGRAM.start(
        ["compare", f"--first={folder / 'first'}", f"--second={folder / 'second'}", *arguments]
    )
    evaluate.main()


def test_scored_replies_are_paired_by_item_and_tested_by_task(scored, capsys):
    compare(scored, "--names=one,other")
    lines = capsys.readouterr().out.strip().splitlines()
    rows = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in lines
        if "|" in line
    }
    assert list(rows)[2:] == ["navigate", "snarks", "all"]
    assert rows["snarks"][:5] == ["12 of 178", "8.3 [1.5, 35.4]", "91.7 [64.6, 98.5]", "+83.3", "1 / 11"]
    alone, corrected = map(float, rows["snarks"][5:7])
    assert alone == pytest.approx(0.0063, rel=0.02)  # 1 of 12, two-sided
    assert corrected == pytest.approx(2 * alone, rel=0.05)
    assert rows["all"][:2] == ["24 of 428", "8.3 [3.5, 27.5]"]
    assert any("n of N: a part of the N questions" in line for line in lines)
    assert lines[-1].startswith("other is right more often (one 8.3 %, other 91.7 %, n = 24, one seed")


def test_what_cannot_be_paired_is_one_message(scored, capsys):
    items = scored / "second/items.jsonl"
    items.write_text("\n".join(items.read_text(encoding="utf-8").splitlines()[:-1]), encoding="utf-8")
    with pytest.raises(SystemExit):
        compare(scored)
    assert "error: 1 items are in one evaluation only" in capsys.readouterr().err


def test_other_than_two_names_are_refused(scored, capsys):
    with pytest.raises(SystemExit):
        compare(scored, "--names=one,two,three")
    assert "must be two names" in capsys.readouterr().err
