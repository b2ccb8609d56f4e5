"""lm-eval's filters: what its own classes give on these replies, by task, first match and last match."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.evaluation import lm_eval_filters
from orca_jax.evaluation.benchmarks import bbh
from orca_jax.evaluation.lm_eval_filters import FIRST, LAST

DATES = "When?\nOptions:\n(A) 12/08/1928\n(B) 11/08/1928\n(C) 10/08/1928"
FRUIT = "Sort the following words alphabetically: List: pear apple fig"
LETTERED, NUMBER, LIES = "date_understanding", "object_counting", "web_of_lies"
# (task, question, reply, zero-shot, step by step); None is lm-eval's [invalid].
VECTORS = [
    (LETTERED, DATES, "Not (A) but (B).", "(A)", "(B)"),
    (LETTERED, DATES, "The answer is 11/08/1928.", "(B)", "(B)"),
    (LETTERED, DATES, "It is 12/08/1928, sorry, 10/08/1928", "(A)", "(C)"),
    (LETTERED, DATES, "answer: B", "(B)", "(B)"),
    (LETTERED, DATES, "answer:B", "(B)", "(B)"),
    (LETTERED, DATES, "B", None, None),
    (LETTERED, DATES, "B.", None, None),
    (LETTERED, DATES, "Option B", None, None),
    (LETTERED, DATES, "(b)", None, None),
    (LETTERED, DATES, "(Z)", "(Z)", "(Z)"),
    ("boolean_expressions", "", "not True is False", "True", "False"),
    ("boolean_expressions", "", "true", None, None),
    ("navigate", "", "No. Yes.", "No", "Yes"),
    ("causal_judgement", "", "YES", None, None),
    ("formal_fallacies", "", "valid, no: invalid", "valid", "invalid"),
    ("formal_fallacies", "", "Invalid", None, None),
    ("dyck_languages", "", "The closing sequence is ] ] >.", "", "] ] >"),
    (NUMBER, "", "well-known answer: 24", "-", "24"),
    (NUMBER, "", "answer is 1,234.", "1", "234"),
    (NUMBER, "", "twenty four", "24", "24"),
    (NUMBER, "", "eighteen", "18", "18"),
    (NUMBER, "", "twenty-four", "-", "-"),
    (NUMBER, "", "There are seven", None, None),
    ("multistep_arithmetic_two", "", "two hundred and five", "205", "205"),
    ("sports_understanding", "", "It is not plausible.", "no", "no"),
    ("sports_understanding", "", "implausible", None, None),
    (LIES, "", "She is not telling the truth, so No", "no", "no"),
    (LIES, "", "not telling the truth", None, None),
    (LIES, "", "Jo says Ann tells the truth.", "yes", "yes"),
    ("word_sorting", FRUIT, "First pear, then apple fig pear", "apple fig pear", "apple fig pear"),
    ("word_sorting", FRUIT, "Apple fig pear", "fig pear", "fig pear"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "question", "reply", "first", "last"), VECTORS)
def test_flexible_extract(task, question, reply, first, last):
    assert lm_eval_filters.flexible(task, reply, question, place=FIRST) == first
    assert lm_eval_filters.flexible(task, reply, question, place=LAST) == last


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("So the answer is (B).", "(B)"),
        ("So the answer is (B)", "(B"),
        ("So the answer is (B). ", "(B)."),
        ("the answer is 42", "4"),
        ("So the answer is: (D).", None),
        ("The answer: (C).", "(C)"),
        ("The final answer: (C).", "(C)"),
        ("The answer is (A).\nThe answer is (B).", "(A)"),
        ("", None),
    ],
)
def test_strict_match_step_by_step(reply, answer):
    assert lm_eval_filters.strict(reply, step_by_step=True) == answer


@pytest.mark.parametrize(
    ("answer", "target", "same"),
    [
        ("(B).", "(B)", True),
        ("yes", "Yes", True),
        ("1,234", "1234", True),
        ('"a\\b"\n', "ab", True),
        (" (B)", "(B)", False),  # nothing strips it
        ("(B)..", "(B)", False),
    ],
)
def test_exact_match_ignores_what_lm_eval_ignores(answer, target, same):
    assert lm_eval_filters.exact_match(answer, target) is same


def test_two_options_of_one_text_are_the_later_letter():
    assert lm_eval_filters.flexible(LETTERED, "same", "(A) Same\n(B) same!", place=FIRST) == "(B)"


def test_words_that_are_no_pattern_do_not_fail():
    assert lm_eval_filters.flexible("word_sorting", "c fig", "List: fig c++ (", place=FIRST) == "fig"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(bbh.TASKS)), st.text(max_size=60), st.sampled_from([FIRST, LAST]))
def test_any_reply_is_read(task, reply, place):
    answer = lm_eval_filters.flexible(task, reply, DATES, place=place)
    assert answer is None or answer == answer.strip()
