"""The accuracy figure is a picture of its scores."""

import pytest

from orca_jax.reporting import figures


def scores(accuracy):
    row = {"n": 10, "accuracy": accuracy, "stderr": 0.1, "unparsed": 0.0, "chance": 0.5, "majority": 0.5}
    return {"tasks": {"navigate": row, "web_of_lies": row}}


def test_a_picture_is_drawn(tmp_path):
    figures.accuracy_bars({"empty": scores(0.5), "steps": scores(0.9)}, tmp_path / "a.png", title="mini")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_its_scores(tmp_path):
    """As SVG, two pictures of the same scores are alike, and of others are not."""
    drawn = []
    for accuracy in (0.5, 0.9):
        figures.accuracy_bars({"steps": scores(accuracy)}, tmp_path / "a.svg", title="mini")
        text = (tmp_path / "a.svg").read_text()
        drawn.append(
            [line for line in text.splitlines() if line.lstrip().startswith(("L ", 'd="M', "<path d"))]
        )
    assert drawn[0] != drawn[1]


def test_a_task_may_be_missing_under_one_message(tmp_path):
    partial = {"tasks": {"navigate": scores(0.5)["tasks"]["navigate"]}}
    figures.accuracy_bars({"empty": partial, "steps": scores(0.9)}, tmp_path / "a.png", title="mini")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nonsense"):
        figures.accuracy_bars({"steps": scores(0.9)}, tmp_path / "a.nonsense", title="mini")
