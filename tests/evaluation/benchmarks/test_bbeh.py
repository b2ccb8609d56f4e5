"""BIG-Bench Extra Hard: its files, its evaluator's answers, its mean over tasks."""

import json

import pytest

from orca_jax.evaluation import scoring, statistics
from orca_jax.evaluation.benchmarks import bbeh, registry
from orca_jax.evaluation.benchmarks.base import BenchmarkError
from orca_jax.evaluation.extraction import bbeh as read
from orca_jax.evaluation.extraction import bbeh_alike
from orca_jax.records import Outcome, Reply
from orca_jax.reporting import tables


def write(path, count, target="(B)"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"input": f"Question {number}?", "target": target} for number in range(count)]
    path.write_text(json.dumps({"canary": "keep", "examples": rows}), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "bbeh_disambiguation_qa/task.json", 120)
    write(tmp_path / "bbeh_word_sorting/task.json", 200, "a, b")
    return tmp_path


def scores(questions, right):
    """`right` says by task how many are."""
    left = dict(right)
    replies = []
    for question in questions:
        left[question.task] -= 1
        said = question.target if left[question.task] >= 0 else "?"
        replies.append(Reply(Outcome.OK, f"So. The answer is: {said}."))
    items = scoring.score(questions, replies, seed=0, mode="bbeh", system_message_id=1)
    return scoring.summarise(items, questions, groups=bbeh.GROUPS)


def test_tasks_are_averaged_by_the_papers_harmonic_mean(folder):
    questions = registry.questions("bbeh", folder, mode="bbeh")
    assert questions[0].text == f"Question 0?\n\n{bbeh.CUE}"
    found = scores(questions, {"disambiguation_qa": 60, "word_sorting": 0})
    group = found["groups"]["all23"]
    assert 100 * group["accuracy"] == pytest.approx(2 / (1 / 51 + 1 / 1))
    assert len(group["missing"]) == 21
    assert found["micro"] == 60 / 320
    shown = " ".join(tables.score_table(found).split())
    assert "all23: harmonic mean of 2 tasks, 21 missing | 320 | 2.0 ± " in shown


def test_its_error_is_that_of_small_changes():
    tasks = [statistics.Estimate(0.5, 0.02), statistics.Estimate(0.1, 0.01)]
    mean = statistics.harmonic_mean(tasks)
    moved = [
        statistics.harmonic_mean([*tasks[:i], statistics.Estimate(value + 1e-6, error), *tasks[i + 1 :]])
        for i, (value, error) in enumerate(tasks)
    ]
    slopes = [(one.value - mean.value) / 1e-6 for one in moved]
    expected = sum((slope * error) ** 2 for slope, (_, error) in zip(slopes, tasks)) ** 0.5
    assert mean.stderr == pytest.approx(expected, rel=1e-4)


def test_the_mini_is_one_task(tmp_path):
    found = scores(registry.questions("bbeh", write(tmp_path / "data.json", 460), mode="bbeh"), {"mini": 46})
    assert (found["micro"], list(found["tasks"])) == (0.1, ["mini"])
    assert "all23" not in found["groups"]


def test_files_of_another_size_or_form_are_refused(folder, tmp_path):
    write(folder / "bbeh_word_sorting/task.json", 199)
    with pytest.raises(BenchmarkError, match=r"word_sorting/task\.json: expected 200 rows, found 199"):
        registry.questions("bbeh", folder, mode="bbeh")
    with pytest.raises(BenchmarkError, match=r"no\.json: no such file"):
        registry.questions("bbeh", tmp_path / "no.json", mode="bbeh")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchmarkError, match="holds no BBEH file; expected some of bbeh_boardgame_qa/task"):
        registry.questions("bbeh", tmp_path / "empty", mode="bbeh")


# What the published evaluator (google-deepmind/bbeh, 80d12ca) says of each; ours was compared with it on
# 400,000 random replies.
@pytest.mark.parametrize(
    ("reply", "target", "right"),
    [
        ("Ok. The final answer is: \\boxed{4}.", "4", True),
        ("Ok. The final answer is: \\boxed{4}.", "3", False),
        ("The final answer is: 2, 3, 4", "2,3,4", True),
        ("The answer is: (A)", "a", True),
        ("The answer is: B", "(B)", True),
        ("The answer is: (A)", "b", False),
        ("The answer is: **25**\nFor so it is.", "25.0", True),
        ("The answer is: $\\text{Yes}$.", "Yes", True),
        ("The answer is Dan, Kyle", "[Dan, Kyle]", True),
        ("The answer is: it's", "its", True),
        ("The answer is: why?", "why", True),
        ("unknown", "unknown", True),
        ("It may be unknown", "unknown", False),
        ("The answer is: 4. The answer is: 5", "5", True),
        ("the answer is: 5", "5", False),  # in capitals only
    ],
)
def test_answers_are_those_of_the_published_evaluator(reply, target, right):
    assert bbeh_alike(read(reply), target) is right


@pytest.mark.realdata
def test_the_real_mini(shared_data):
    questions = registry.questions("bbeh", shared_data / "bbeh/mini.json", mode="bbeh")
    replies = [Reply(Outcome.OK, f"The answer is: {question.target}") for question in questions]
    items = scoring.score(questions, replies, seed=0, mode="bbeh", system_message_id=1)
    assert len(items) == 460
    assert all(item.correct for item in items)
