"""What is wrong with a trace: each flag on what it is for and on what it is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.queries.agreement import agrees, final_answer
from orca_jax.queries.contamination import Index
from orca_jax.queries.quality import JUDGES, TraceChecker
from orca_jax.records import Message, Outcome, Sampling, Trace


def trace(answer, *, question="What is it?", system="", target=None, sample=0, outcome=Outcome.OK):
    messages = (Message("system", system), Message("user", question), Message("assistant", answer))
    return Trace("t", "q", sample, messages, "cot", "task", 1, "gpt-4", Sampling(), outcome, target=target)


REFUSALS = [
    "I'm sorry, but I cannot answer this question without the passage.",
    "I am sorry, but as an AI language model I am unable to provide that.",
    "Sorry, I can't help with that.",
    "As an AI language model, I don't have access to the article.",
    "Unfortunately, I do not have enough information to answer.",
    "I cannot determine the answer from what is given.",
    "I’m sorry, but the question is not clear.",
]
ANSWERS = [
    "The answer is that he cannot provide for his family.",
    "Sorry is a word of five letters.",
    "He said: I can't help you.",
    "First, I look at the sentence. It cannot be determined who won, so the answer is neutral.",
    "No.",
    "I can help. The answer is B.",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_refusals(answer):
    assert JUDGES["refusal"](answer)


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_are_no_refusals(answer):
    assert not JUDGES["refusal"](answer)


@pytest.mark.parametrize(
    ("answer", "itself"),
    [
        ("As an AI language model, I would say yes.", True),
        ("I am an artificial intelligence and have no taste.", True),
        ("I'm just a language model.", True),
        ("I am ChatGPT.", True),
        ("I was trained by OpenAI.", True),
        ("The film is about an AI language model.", False),
        ("I am a teacher.", False),
        ("As an airline, we fly.", False),
    ],
)
def test_self_identification(answer, itself):
    assert JUDGES["self_identification"](answer) == itself


LONG = "The man walked into the house and then he looked for the red"


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        (LONG, True),
        (f"First.\n{LONG}", True),
        (f"{LONG} book.", False),
        (f'{LONG} "book"', False),
        (f"{LONG}:\n- book", False),
        ("positive", False),
        ("The answer is B", False),
    ],
)
def test_truncated(answer, broken):
    assert JUDGES["truncated"](answer) == broken


def test_repetitive():
    assert JUDGES["repetitive"]("it goes on and on and never comes to an end. " * 8)
    assert not JUDGES["repetitive"]("it goes on and on and never comes to an end. " * 2)
    assert not JUDGES["repetitive"](" ".join(str(i) for i in range(200)))


@given(st.text(), st.text(), st.text())
def test_any_text_can_be_checked(answer, target, question):
    assert agrees(answer, target, question) in (True, False, None)
    assert isinstance(final_answer(answer, question), str | None)
    assert {judge(answer) for judge in JUDGES.values()} <= {True, False}


def test_every_flag_is_counted_and_only_filters_leave_out():
    checker = TraceChecker(("refusal",))
    traces = [
        trace("4", question="2 + 2?", target="4"),
        trace("5", question="2 + 2?", target="4"),
        trace("4", question="2 + 2?", target="4", sample=1),
        trace("5", question="2 + 2?", target="4", sample=1, system="Be brief."),
        trace(REFUSALS[0]),
        trace("As an AI language model, I say yes."),
        trace("", outcome=Outcome.EMPTY),
    ]
    flags = [checker.check(each) for each in traces]
    assert flags == [
        [],
        ["duplicate", "disagrees"],
        ["duplicate"],
        ["disagrees"],
        ["refusal", "unchecked"],
        ["duplicate", "self_identification", "unchecked"],
        [],
    ]
    summary = checker.summary()
    assert summary["flags"] == {
        "duplicate": 3,
        "refusal": 1,
        "self_identification": 1,
        "truncated": 0,
        "repetitive": 0,
        "disagrees": 2,
        "unchecked": 2,
    }
    assert summary["left_out"] == {"duplicate": 3, "refusal": 1}
    assert (summary["traces"], summary["kept"]) == (7, 3)


def test_another_sample_of_a_question_is_no_duplicate():
    checker = TraceChecker()
    assert not checker.check(trace("One way.", sample=0)).count("duplicate")
    assert not checker.check(trace("Another way.", sample=1)).count("duplicate")
    assert checker.check(trace("One way.", sample=2)).count("duplicate")


def test_questions_of_a_benchmark_are_flagged_where_it_is_given():
    asked = "How many of the seven blue elephants in the garden have a ring on their left ear?"
    checker = TraceChecker(("contaminated",), Index([("test", "1", asked)]))
    placed = [
        (10 * number, trace("7", question=text)) for number, text in enumerate(["2 + 2?", asked, "Why?"])
    ]
    found = [(place, flags) for place, _, flags in checker.stream(iter(placed))]
    assert found == [(0, ["unchecked"]), (10, ["contaminated", "unchecked"]), (20, ["unchecked"])]
    assert checker.left_out == {"contaminated": 1}
    assert checker.summary()["flags"]["contaminated"] == 1
    assert "contaminated" not in TraceChecker().summary()["flags"]


def test_slimorcas_rule_keeps_what_agrees():
    checker = TraceChecker(("disagrees", "unchecked"))
    traces = [trace("4", target="4"), trace("5", target="4", question="?"), trace("So.", question="??")]
    kept = [each for each in traces if checker.reason(checker.check(each)) is None]
    assert kept == traces[:1]
    assert checker.left_out == {"disagrees": 1, "unchecked": 1}
