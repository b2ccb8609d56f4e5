import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks.base import Group, Question
from orca_jax.files import read_jsonl
from orca_jax.records import Item, Outcome, Reply


def question(task, number, *, target="A", choices=("A", "B"), chance=0.5, **changes):
    return Question("b", task, f"{task}-{number}", "?", target, choices, chance, 0.6, **changes)


def reply(text, outcome=Outcome.OK):
    return Reply(outcome, text)


def score(questions, texts, **changes):
    options = {"seed": 0, "mode": "robust", "system_message_id": 1} | changes
    return scoring.score(questions, [reply(text) for text in texts], **options)


def test_items_carry_what_was_asked_answered_and_right():
    questions = [question("t", i, details=lambda text: {"length": len(text)}) for i in range(3)]
    items = score(questions, ["(A)", "(B)", "who knows"], seed=5)
    assert [item.correct for item in items] == [True, False, False]
    assert [item.answer for item in items] == ["A", "B", None]
    first = items[0]
    assert (first.seed, first.mode, first.system_message_id, first.extra) == (5, "robust", 1, {"length": 3})


def test_the_mode_decides_how_a_reply_is_read():
    questions = [question("t", 0, target="B", extra={"letters": "ABCDEF"})]
    assert score(questions, ["Answer: B"], mode="orca")[0].answer == "A"
    assert score(questions, ["Answer: B"], mode="orca_cot")[0].correct
    with pytest.raises(ValueError, match="known: orca"):
        score(questions, ["B"], mode="orka")


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FILTERED, Outcome.ERROR, Outcome.EMPTY])
def test_only_answered_requests_are_parsed(outcome):
    items = scoring.score(
        [question("t", 0)], [reply("(A)", outcome)], seed=0, mode="robust", system_message_id=None
    )
    assert (items[0].correct, items[0].answer, items[0].outcome) == (False, None, outcome)


def test_a_cut_off_reply_counts_only_if_it_states_its_answer():
    texts = [
        "Maybe (A)",
        "The answer is (A). Also",
        "<think>The answer is (A). Wait",
        "Answer: Of the two, (A)",
    ]
    questions = [question("t", number) for number in range(len(texts))]
    items = scoring.score(
        questions,
        [reply(text, Outcome.LENGTH) for text in texts],
        seed=0,
        mode="robust",
        system_message_id=None,
    )
    assert [item.answer for item in items] == [None, "A", None, "A"]


def test_free_answers_are_compared_by_content():
    free = question("t", 0, target="] >", choices=(), chance=0.0)
    assert score([free], ["So the answer is ]>."])[0].correct


def test_every_question_needs_a_reply():
    with pytest.raises(ValueError, match="1 questions but 0 replies"):
        score([question("t", 0)], [])


QUESTIONS = [*(question("s", i) for i in range(4)), *(question("u", i, chance=0.2) for i in range(2))]
TEXTS = ["(A)", "(A)", "(A)", "?", "(B)", "(A)"]


def test_scores_by_task_and_both_averages():
    scores = scoring.summarise(score(QUESTIONS, TEXTS), QUESTIONS)
    assert scores["mode"] == "robust"
    assert scores["tasks"]["s"] == pytest.approx(
        {"n": 4, "accuracy": 0.75, "stderr": 0.21650635, "unparsed": 0.25, "chance": 0.5, "majority": 0.6}
    )
    assert (scores["macro"], scores["micro"]) == pytest.approx((0.625, 4 / 6))
    macro, micro = scores["groups"]["macro"], scores["groups"]["micro"]
    assert (macro["accuracy"], macro["chance"]) == pytest.approx((0.625, 0.35))
    assert (micro["n"], micro["tasks"], micro["accuracy"]) == pytest.approx((6, 2, 4 / 6))
    assert macro["majority"] == pytest.approx(0.6)


def test_what_is_not_known_of_a_question_is_none():
    questions = [question("t", 0, chance=None), question("u", 0)]
    scores = scoring.summarise(score(questions, ["A", "A"]), questions)
    assert scores["tasks"]["t"]["chance"] is None
    assert scores["groups"]["macro"]["chance"] is None


def test_questions_about_one_passage_are_a_cluster():
    questions = [question("t", i, extra={"cluster": i // 2}) for i in range(4)]
    found = scoring.summarise(score(questions, ["(A)", "(A)", "(B)", "(B)"]), questions)["tasks"]["t"]
    assert found["stderr"] == pytest.approx(0.25)
    assert found["stderr_clustered"] == pytest.approx(0.5 / 2**0.5)


def test_the_share_of_questions_that_training_queries_met():
    found = scoring.summarise(score(QUESTIONS, TEXTS), QUESTIONS, met={"s-0", "u-1/passage"})
    assert found["tasks"]["s"]["query_overlap"] == 0.25
    assert found["groups"]["micro"]["query_overlap"] == pytest.approx(2 / 6)


def test_groups_say_what_is_missing_and_absent_groups_are_left_out():
    groups = [
        Group("all", ("s", "u"), "micro"),
        Group("part", ("u", "v"), "macro"),
        Group("none", ("w",), "macro"),
    ]
    found = scoring.summarise(score(QUESTIONS, TEXTS), QUESTIONS, groups=groups)["groups"]
    assert set(found) == {"macro", "micro", "all", "part"}
    assert found["all"]["missing"] == []
    assert found["all"]["accuracy"] == pytest.approx(4 / 6)
    assert found["part"]["missing"] == ["v"]
    assert (found["part"]["tasks"], found["part"]["accuracy"]) == (1, 0.5)


def test_seeds_are_averaged_within_questions():
    items = score(QUESTIONS[:2], ["(A)", "(A)"], seed=0) + score(QUESTIONS[:2], ["(A)", "(B)"], seed=1)
    task = scoring.summarise(items, QUESTIONS)["tasks"]["s"]
    assert (task["n"], task["accuracy"]) == (2, 0.75)
    assert task["stderr"] == pytest.approx(0.25 / 2**0.5)


def test_items_of_several_evaluations_or_unknown_questions_are_refused():
    mixed = score(QUESTIONS, TEXTS) + score(QUESTIONS, TEXTS, system_message_id=2)
    with pytest.raises(ValueError, match="one \\(benchmark, mode, system message\\)"):
        scoring.summarise(mixed, QUESTIONS)
    with pytest.raises(ValueError, match="no item"):
        scoring.summarise([], QUESTIONS)
    with pytest.raises(ValueError, match="b/u/u-0 belongs to none"):
        scoring.summarise(score(QUESTIONS, TEXTS), QUESTIONS[:4])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["(A)", "(B)", "hm"]), min_size=6, max_size=6), st.randoms())
def test_scores_do_not_depend_on_the_order_of_items(texts, random):
    items = score(QUESTIONS, texts)
    shuffled = random.sample(items, len(items))
    one, other = (scoring.summarise(some, QUESTIONS) for some in (items, shuffled))
    assert one["tasks"]["s"] == pytest.approx(other["tasks"]["s"])
    assert one["micro"] == pytest.approx(other["micro"])
    assert one["micro"] == pytest.approx(texts.count("(A)") / 6)


def test_written_items_and_scores_read_back(tmp_path):
    items = score(QUESTIONS, TEXTS)
    scores = scoring.summarise(items, QUESTIONS)
    scoring.write(tmp_path, items, scores)
    assert list(read_jsonl(tmp_path / "items.jsonl", Item)) == items
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == scores
