import pytest

from orca_jax.evaluation.benchmarks.base import Question, conversation
from orca_jax.records import Message


def question(**changes):
    return Question(**{"benchmark": "b", "task": "t", "id": "1", "text": "Why?", "target": "A"} | changes)


def test_an_empty_system_text_sends_no_system_message():
    assert conversation(question(), "") == (Message("user", "Why?"),)
    assert conversation(question(), "Be brief.") == (Message("system", "Be brief."), Message("user", "Why?"))


def test_a_target_outside_the_choices_is_refused_with_its_id():
    with pytest.raises(ValueError, match=r"b/t, question 1: target 'A'"):
        question(choices=("B", "C"))
