"""Contestants take turns, and the figures of the tables follow from their times."""

import numpy as np
import pytest

from benchmarks import racing


def test_contestants_take_turns():
    order = []
    racers = [racing.Contestant(name, lambda name=name: order.append(name), 1, 1) for name in "ab"]
    timed = racing.race(racers, rounds=3, seconds=0)
    assert timed.shape == (3, 2)
    assert "".join(order) == "ab" + "aaabbb" * 3


def test_the_report_gives_rates_and_ratios(capsys):
    racers = [
        racing.Contestant("ours", lambda: None, 100, 50),
        racing.Contestant("theirs", lambda: None, 100, 25),
    ]
    racing.report("shape", racers, np.array([[1.0, 2.0], [1.0, 2.0]]), more=["x", "y"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    ours = next(line for line in lines if len(line) > 1 and "ours" in line[1])
    assert [cell.strip().split()[0] for cell in ours[2:7]] == ["1000", "100", "50", "4.00", "x"]


def test_a_command_line_gives_the_parameters_of_a_function(capsys):
    found = {}

    def main(table, rounds: int = 5, seconds: float = 4.0, alone: bool = False, out: str = ""):
        found.update(locals())

    racing.command(main, ["families", "--rounds=2", "--alone", "--out=x"])
    assert [found[name] for name in ("table", "rounds", "seconds", "alone", "out")] == [
        "families", 2, 4.0, True, "x",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        racing.command(main, ["families", "--runds=2"])
    assert "--runds" in capsys.readouterr().err


def test_padding_is_on_the_side_that_is_named():
    arrays = [np.arange(1, 4), np.arange(1, 2)]
    assert racing.padded(arrays, -1).tolist() == [[1, 2, 3], [1, -1, -1]]
    assert racing.padded(arrays, left=True).tolist() == [[1, 2, 3], [0, 0, 1]]
