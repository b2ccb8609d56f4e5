"""Modes by name: which answer each reads out of a reply, and what it holds it against."""

import math

import pytest

from orca_jax.evaluation import modes, scoring
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.records import Outcome, Reply


def question(target="(B)", task="snarks", **extra):
    return Question("bbh", task, "0", "?", target, extra=extra)


def item(mode, asked, text="", outcome=Outcome.OK, **raw):
    replies = [Reply(outcome, text, raw=raw)]
    return scoring.score([asked], replies, seed=0, mode=mode, system_message_id=None)[0]


@pytest.mark.parametrize(
    ("mode", "text", "answer", "correct"),
    [
        ("answer_is", "So the answer is (B).", "(B)", True),
        ("answer_is", "So the answer is B.", "B", False),  # letter by letter
        ("answer_is", "It is (B).", None, False),
        ("agieval_upstream", "The (B)", "B", False),
    ],
)
def test_a_reply_is_read_as_the_mode_does(mode, text, answer, correct):
    found = item(mode, question(), text)
    assert (found.answer, found.correct, found.mode) == (answer, correct, mode)


LABELS = {"labels": ["A", "B"], "continuations": ["(A) a very long option", "(B) b"]}


def test_likelihood_takes_the_likeliest_and_beside_it_the_likeliest_a_character():
    asked = question("B", **LABELS)
    found = item("lm_eval_loglik", asked, log_likelihoods=[-3.0, -2.0])
    assert (found.answer, found.correct, found.extra) == ("B", True, {"metrics": {"acc_norm": 0.0}})
    assert item("lm_eval_loglik", asked, log_likelihoods=[-30.0, -2.0]).extra["metrics"]["acc_norm"] == 1


def test_a_tie_goes_to_the_first_in_lm_eval_and_is_no_answer_here():
    asked = question("A", **LABELS)
    assert item("lm_eval_loglik", asked, log_likelihoods=[-2.0, -2.0]).answer == "A"
    assert item("loglik", asked, log_likelihoods=[-2.0, -2.0]).answer is None


def test_mc2_is_the_probability_of_the_true_choices():
    extra = {"labels": ["0", "1"], "continuations": list("abcde"), "mc2": [True, True, False]}
    scores = [-1.0, -2.0, math.log(0.2), math.log(0.1), math.log(0.3)]
    found = item("loglik", question("0", **extra), log_likelihoods=scores)
    assert found.correct
    assert found.extra["metrics"] == pytest.approx({"mc2": 0.5})


def test_what_got_no_reply_has_no_metrics():
    assert item("loglik", question("A", **LABELS), outcome=Outcome.ERROR).extra == {}


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'orka'; known: orca, orca_cot, robust, answer_is"):
        modes.mode("orka")
