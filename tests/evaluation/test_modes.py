"""Modes by name: which answer each reads out of a reply, and what it holds it against."""

import pytest

from orca_jax.evaluation import scoring
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
    ],
)
def test_a_reply_is_read_as_the_mode_does(mode, text, answer, correct):
    found = item(mode, question(), text)
    assert (found.answer, found.correct, found.mode) == (answer, correct, mode)


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'orka'; known: orca, orca_cot, robust, answer_is"):
        scoring.parser("orka")
