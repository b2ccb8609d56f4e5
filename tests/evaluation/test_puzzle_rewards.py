"""Puzzles leave as plain rows, and a reply is checked with the row alone."""

import asyncio
import json

import pytest

from orca_jax.evaluation import puzzle_rewards
from orca_jax.evaluation.puzzle_rewards import CHECKER, puzzle_of, reward, rows, verdict
from orca_jax.experiments import convert
from orca_jax.queries.puzzles import FAMILIES


def solved(row):
    puzzle = puzzle_of(row)
    return [*puzzle.steps, puzzle.instance.closing(puzzle.target)]


def test_rows_are_distinct_puzzles_of_their_split_and_come_again():
    made = list(rows(list(FAMILIES), (2, 3), 12, split="test"))
    assert len({row["id"] for row in made}) == len(made) == 12 * len(FAMILIES)
    assert all(puzzle_of(row).is_test and row["difficulty"] == puzzle_of(row).difficulty for row in made)
    assert made == json.loads(json.dumps(made)) == list(rows(list(FAMILIES), (2, 3), 12, split="test"))
    trained = {row["id"] for row in rows(["tracking"], (2, 3), 50, split="train")}
    assert not trained & {row["id"] for row in rows(["tracking"], (2, 3), 50, split="test", seed=1)}


def test_a_reply_is_checked_in_answer_and_steps():
    for row in rows(list(FAMILIES), (2,), 3):
        right = solved(row)
        found = verdict(row, "\n".join(right))
        assert (found.correct, found.whole, found.right_lines) == (True, True, len(right))
        assert found.steps_right == found.steps_stated == found.steps_expected == len(right) - 1
        found = verdict(row, "\n".join(["It rains.", *right[1:]]))
        assert (found.correct, found.whole, found.right_lines) == (True, False, 0)
        assert found.steps_right == found.steps_expected - 1
        assert (reward(row, "\n".join(right)), reward(row, "It rains.")) == (1.0, 0.0)


def test_a_row_of_another_version_and_what_is_not_there_are_refused(monkeypatch):
    (row,) = rows(["tracking"], (2,), 1)
    with pytest.raises(ValueError, match=f"is drawn as {row['id']} by this version; write the rows again"):
        verdict({**row, "id": "tracking-0"}, "")
    with pytest.raises(ValueError, match="unknown puzzle family 'chess'; known: web_of_lies"):
        list(rows(["chess"], (2,), 1))
    monkeypatch.setattr(puzzle_rewards, "PATIENCE", 0)  # no two draws in a row that are of the other split
    with pytest.raises(ValueError, match=r"tracking has only \d+ of 1000 train puzzles; ask for fewer"):
        list(rows(["tracking"], (2,), 1000))


def test_the_program_writes_them(tmp_path):
    out = tmp_path / "p.jsonl"
    given = [f"--out={out}", "--difficulties=2,4", "--count=4", "--split=test"]
    convert.PROGRAM.start(["puzzles", *given])
    convert.write_puzzles(convert.PROGRAM.given)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["difficulty"] for row in lines] == [2, 4] * 6
    assert {row["checker"] for row in lines} == {CHECKER}


def trace_of(task, text):
    """What `verifiers` keeps of a rollout with one reply."""
    from verifiers.v1 import AgentConfig, Trace
    from verifiers.v1.graph import MessageNode
    from verifiers.v1.trace import AgentInfo, TraceTask
    from verifiers.v1.types import AssistantMessage, UserMessage

    said = [UserMessage(content=task.data.prompt), AssistantMessage(content=text)]
    nodes = [MessageNode(message=one, parent=parent) for one, parent in zip(said, (None, 0))]
    of = TraceTask(type=type(task).__name__, data=task.data)
    return Trace(task=of, agent=AgentInfo(config=AgentConfig()), nodes=nodes)


def test_the_taskset_of_verifiers_rewards_right_answers():
    pytest.importorskip("verifiers.v1")
    from orca_jax.evaluation.puzzle_taskset import PuzzleConfig, PuzzleTaskset

    tasks = list(PuzzleTaskset(PuzzleConfig(families=("tracking",), difficulties=(3,), count=3)))
    for task in tasks:
        for text, correct in (("\n".join(solved(task.data.row)), 1.0), ("It rains.", 0.0)):
            trace = trace_of(task, text)
            asyncio.run(task.score(trace))
            assert trace.reward == correct
            assert trace.metrics["whole"] == correct
