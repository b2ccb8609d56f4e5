"""A judge's reviews: what is asked, what is read, and what they say of the candidate."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.evaluation import judging
from orca_jax.evaluation.benchmarks.base import BenchmarkError, Question
from orca_jax.evaluation.judging import CANDIDATE_FIRST, REFERENCE_FIRST, Form, Review

QUESTIONS = [
    Question(
        "gpt4_judge", "vicuna_prompts", f"v-{i}", f"Why {{answer_2}} {i}?", "", extra={"question_id": i + 1}
    )
    for i in range(2)
]


def both(question, first, second, lengths=None):
    """A question's reviews: scores (reference, candidate) with the reference first, and second."""
    return [
        Review(question, REFERENCE_FIRST, first, lengths),
        Review(question, CANDIDATE_FIRST, second, lengths),
    ]


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("9 8.5\nBoth are good.", (9, 8.5)),
        ("9, 8", (9, 8)),
        ("\n8  9\nBecause", (8, 9)),
        ("9 8 7\n", None),
        ("Assistant 1: 9", None),
        ("-1 -1", None),
        ("nan 8", None),
        ("", None),
    ],
)
def test_the_first_line_must_hold_two_scores_and_nothing_else(text, scores):
    assert judging.parse_scores(text) == scores


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_review_is_read(text):
    found = judging.parse_scores(text)
    assert found is None or all(np.isfinite(found))


def test_every_question_is_asked_in_both_orders():
    reference, candidate = {"v-0": "R0", "2": "R1"}, {"1": "C0", "v-1": "C1!"}
    asked = judging.comparisons(QUESTIONS, reference, candidate)
    assert [(c.question.id, c.order) for c in asked] == [
        (f"v-{i}", order) for i in range(2) for order in judging.ORDERS
    ]
    texts = [comparison.messages[1].content for comparison in asked]
    assert texts[0].index("Why {answer_2} 0?") < texts[0].index("R0") < texts[0].index("C0")
    assert texts[3].index("C1!") < texts[3].index("R1")
    assert asked[3].lengths == (2, 3)
    with pytest.raises(ValueError, match="the candidate has no answer to v-1"):
        judging.comparisons(QUESTIONS, reference, {"1": "C0"})
    with pytest.raises(ValueError, match="orders has 'both'; known: reference_first, candidate_first"):
        judging.comparisons(QUESTIONS, reference, candidate, orders=["both"])


def test_forms_are_taken_by_category(tmp_path):
    rows = [
        {"category": name, "system_prompt": "S", "prompt_template": name + " {question} {prompt}",
         "defaults": {"prompt": "Go."}}
        for name in ("general", "math")
    ]  # fmt: skip
    path = tmp_path / "prompt.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    forms = judging.read_forms(path)
    assert forms["math"] == Form("S", "math {question} Go.")
    asked = [Question("b", "t", "0", "Q", "", extra={"category": "math"}), QUESTIONS[0]]
    made = judging.comparisons(asked, {"0": "a", "1": "b"}, {"0": "c", "1": "d"}, forms, [REFERENCE_FIRST])
    assert [comparison.messages[1].content[:7] for comparison in made] == ["math Q ", "general"]
    path.write_text(json.dumps(rows[1]), encoding="utf-8")
    with pytest.raises(BenchmarkError, match="no form of category 'general'"):
        judging.read_forms(path)


def test_a_review_written_is_the_review_read(tmp_path):
    asked = judging.comparisons(QUESTIONS, {"v-0": "R", "v-1": "R"}, {"v-0": "CC", "v-1": "CC"})
    lines = [judging.review_line(comparison, "9 7\nSo.") for comparison in asked[:3]]
    lines.append(judging.review_line(asked[3], "no idea"))
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = judging.read_reviews(path)
    assert found[0] == Review("v-0", REFERENCE_FIRST, (9, 7), (1, 2))
    assert found[1].scores == (7, 9)  # the candidate was shown first
    assert found[3].scores is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question_id": 1}, ":2: a review needs 'score'"),
        ({"question_id": 1, "score": [9]}, r":2: 'score' must be two numbers, not \[9\]"),
        ({"score": [9, 9]}, ":2: needs 'question_id'"),
        ({"question_id": 1, "order": "any", "score": [9, 9]}, ":2: needs 'question_id', and 'order'"),
        ({"question_id": 0, "text": "9 9"}, ":2: question 0 is reviewed twice"),
    ],
)
def test_malformed_reviews_are_refused_by_file_and_line(tmp_path, row, message):
    path = tmp_path / "reviews.jsonl"
    path.write_text(json.dumps({"question_id": 0, "text": "9 8"}) + "\n" + json.dumps(row), encoding="utf-8")
    with pytest.raises(BenchmarkError, match=message):
        judging.read_reviews(path)


def test_the_papers_figure_is_the_ratio_of_totals_in_its_order():
    reviews = both("a", (10, 8), (9, 9)) + both("b", (5, 6), (5, 6)) + both("c", None, (8, 8))
    found = judging.summarise(reviews)
    assert found["per_cent"] == pytest.approx(
        {REFERENCE_FIRST: 100 * 14 / 15, CANDIDATE_FIRST: 100 * 23 / 22, "both": 100 * 37 / 37}
    )
    assert (found["questions"], found["reviews"], found["unparsed"]) == pytest.approx((3, 6, 1 / 6))
    assert found["interval"][0] <= found["per_cent"]["both"] <= found["interval"][1]


def test_orders_that_disagree_are_a_tie_and_a_flip():
    reviews = both("a", (9, 8), (8, 9)) + both("b", (5, 6), (5, 7)) + both("c", (9, 9.1), (9, 9))
    found = judging.summarise(reviews)
    assert (found["win"], found["tie"], found["loss"]) == pytest.approx((1 / 3, 2 / 3, 0))
    assert (found["win_rate"], found["flips"]) == pytest.approx((2 / 3, 1 / 3))


def test_without_a_well_formed_review_there_is_nothing_to_say():
    found = judging.summarise(both("a", None, None))
    assert found["unparsed"] == 1
    assert (found["per_cent"], found["interval"], found["win_rate"], found["flips"]) == ({}, None, None, None)


def test_of_a_reference_without_a_point_there_is_no_per_cent():
    with pytest.raises(ValueError, match="the reference has a score of 0 in every review"):
        judging.summarise(both("a", (0, 8), (0, 9)))


LENGTHS = [(100, 300), (300, 100)]  # the candidate is longer, and the reference


def test_at_equal_length_a_candidate_that_wins_by_length_alone_is_even():
    won = [(i, LENGTHS[0], i % 4 > 0) for i in range(60)] + [
        (i, LENGTHS[1], i % 4 == 0) for i in range(60, 80)
    ]
    reviews = [r for i, length, win in won for r in both(str(i), *[(8, 9) if win else (9, 8)] * 2, length)]
    found = judging.summarise(reviews)
    assert found["win_rate"] == 50 / 80
    assert found["length_controlled"] == pytest.approx(0.5, abs=0.01)
    better = [review for i in range(80) for review in both(str(i), (8, 9), (8, 9), LENGTHS[i % 2])]
    assert judging.summarise(better)["length_controlled"] > 0.95
    assert judging.summarise(reviews[:10])["length_controlled"] is None


def test_answers_of_both_kinds_of_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "v-0", "text": "A"}\n{"question_id": 2, "text": "B"}\n', encoding="utf-8")
    assert judging.read_answers(path) == {"v-0": "A", "2": "B"}
    path.write_text('{"id": "v-0", "text": "A"}\n{"id": "v-0", "text": "B"}\n', encoding="utf-8")
    with pytest.raises(BenchmarkError, match=":2: a second answer to v-0"):
        judging.read_answers(path)
    path.write_text('{"text": "A"}', encoding="utf-8")
    with pytest.raises(BenchmarkError, match=":1: needs 'id' or 'question_id'"):
        judging.read_answers(path)


@pytest.mark.realdata
def test_the_published_reviews_give_the_documented_figure(shared_data):
    reviews = judging.read_reviews(shared_data / "vicuna_bench/review/review_gpt35_vicuna-13b.jsonl")
    found = judging.summarise(reviews)
    assert round(found["per_cent"][REFERENCE_FIRST], 1) == 92.1
    assert (found["questions"], found["unparsed"], found["flips"]) == (80, 0, None)
