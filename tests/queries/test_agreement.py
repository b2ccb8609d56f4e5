"""Agreement with the target, what an answer comes to, and the majority of samples."""

import asyncio
import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.queries.agreement import agrees, final_answer, majority
from orca_jax.queries.puzzles import BBH_FAMILIES, make_puzzles
from orca_jax.queries.puzzles.oracles import Knobs, OracleTeacher, check_steps
from orca_jax.queries.quality import TraceChecker
from orca_jax.queries.system_messages import get
from orca_jax.records import Message, Outcome, Sampling, Trace

OPTIONS = "Which one?\nOptions:\n(A) a red apple\n(B) a green pear\n(C) a plum"


@pytest.mark.parametrize(
    ("answer", "target", "question", "agreed"),
    [
        ("18", "18", "", True),
        ("She sells 9 eggs. So the answer is $18.00.", "18", "", True),
        ("So the answer is 1,800.", "1800", "", True),
        ("So the answer is 180.", "18", "", False),
        ("The answer is yes.", "no", "", False),
        ("Yes, because it flies.", "yes", "", True),
        ("Step by step: it flies.\nTherefore, no, it is not.", "no", "", True),
        ("There is no doubt. It flies.\nThe answer is yes.", "no", "", False),
        ("It is either yes or no.", "yes", "", False),
        ("(B)", "(B)", OPTIONS, True),
        ("The answer is B) a green pear.", "(B)", OPTIONS, True),
        ("A green pear.", "(B)", OPTIONS, True),
        ("The answer is (A).", "(B)", OPTIONS, False),
        ("It is a plum.", "a green pear", OPTIONS, False),
        ("Not a plum but a green pear.", "a green pear", OPTIONS, False),
        ("Positive", "positive", "", True),
        ("Brilliant! Tragic!", "brilliant tragic", "", True),
        ("E", "E", OPTIONS, True),
        ("C", "E", OPTIONS, False),
        ("So the answer is (A) and (B).", "(B)", OPTIONS, False),
        ("The answer is (D).", "(D)", "", True),
        ("A plum.", "(A)", "", False),
        ("We need to close two. So the answer is ] ).", "] )", "", True),
        ("So the answer is ] ).", "]", "", False),
        ("Whatever.", "a very long target that has more words than anybody looks for here", "", None),
        ("Whatever.", "?!", "", None),
    ],
)
def test_agreement_with_the_target(answer, target, question, agreed):
    assert agrees(answer, target, question) is agreed


@given(st.sampled_from(["yes", "42", "a plum", "Paris", "(C)"]))
def test_the_target_agrees_with_itself(target):
    assert agrees(target, target, OPTIONS)
    assert agrees(f"Because of this and that.\nSo the answer is {target}.", target, OPTIONS)


@pytest.mark.parametrize(
    ("question", "answers", "found"),
    [
        ("", ["18", "$18.00", "She sells 9. So the answer is 18 eggs.", "At last there are 18 eggs."], "18"),
        (
            "",
            ["Yes.", "yes, it flies.", "It flies.\nTherefore, yes.", "[Yes]", "Yes\n\nIt has wings."],
            "yes",
        ),
        ("", ["1,800", "So the answer is 1800.0."], "1800"),
        (OPTIONS, ["(B)", "A green pear.", "The answer is B) a green pear.", "So the answer is (b)."], "(b)"),
        ("", ["] )", "We close two. So the answer is ] )."], "] )"),
        ("", ["Paris", "So the answer is Paris.", "paris."], "paris"),
        ("", ["Her list has 3 entries, 2 of them new.\nThat is all she said.", "", "?!"], None),
    ],
)
def test_answers_that_say_the_same_come_to_the_same(question, answers, found):
    assert [final_answer(answer, question) for answer in answers] == [found] * len(answers)


MESSAGES = (1, 3, 4, 8)  # a bare answer, steps, simple words, the answer first


@pytest.mark.parametrize("family", BBH_FAMILIES)
def test_right_answers_to_a_puzzle_come_to_one_and_wrong_ones_to_others(family):
    puzzles = make_puzzles(family, difficulties=(1, 2, 3), count=30, seed=0, split="train")
    right, wrong = (
        OracleTeacher("t", puzzles, Knobs(brevity=0, reach=9, error_rate=rate)) for rate in (0.0, 1.0)
    )
    for puzzle in puzzles:
        for message in MESSAGES:
            asked = [Message("system", get(message).text), Message("user", puzzle.question)]
            texts = [asyncio.run(one.reply(asked, Sampling())).text for one in (right, wrong)]
            target, *found = [final_answer(text, puzzle.question) for text in (puzzle.target, *texts)]
            assert target is not None
            assert found[0] == target
            assert (found[1] == target) == agrees(texts[1], puzzle.target, puzzle.question)


votes = st.lists(st.sampled_from(["a", "b", "c", None]), max_size=9)


@given(votes)
def test_the_majority_is_more_than_half_and_two_at_least(answers):
    counts = collections.Counter(answers)
    most = [one for one in ("a", "b", "c") if counts[one] >= 2 and 2 * counts[one] > len(answers)]
    assert len(most) <= 1
    assert majority(answers) == (most[0] if most else None)


# --- As filters

AGREED = ("outvoted", "spare")


def trace(query, sample, answer, *, outcome=Outcome.OK, target=None, question=""):
    messages = (Message("user", question or f"What is {query}?"), Message("assistant", answer))
    return Trace(f"{query}/t/{sample}", query, sample, messages, "", "", None, "t", Sampling(), outcome,
                 target=target)  # fmt: skip


def samples(answers, query="q"):
    return [trace(query, number, f"Way {number}. The answer is {a}.") for number, a in enumerate(answers)]


def reasons(traces, filters=AGREED):
    """Why each trace is left out, and the checker."""
    checker = TraceChecker(filters)
    placed = enumerate(traces)
    return [checker.reason(flags) for _, _, flags in checker.stream(placed)], checker


@given(st.lists(st.lists(st.sampled_from("567"), min_size=1, max_size=5), max_size=6))
def test_one_trace_is_kept_of_each_query_on_which_most_samples_agree(queries):
    every = [one for number, answers in enumerate(queries) for one in samples(answers, f"q{number}")]
    found, checker = reasons(every)
    kept = {one.query_id: one for one, reason in zip(every, found) if reason is None}
    assert len(kept) == found.count(None) == checker.summary()["kept"]
    for number, answers in enumerate(queries):
        elected = majority(answers)
        assert (f"q{number}" in kept) == (elected is not None)
        if elected:
            assert kept[f"q{number}"] == next(
                one for one in every if one.query_id == f"q{number}" and final_answer(one.answer) == elected
            )
    assert checker.left_out.total() + found.count(None) == len(every)


def test_what_is_left_out_is_counted_under_its_reason():
    found, checker = reasons(samples("556"))
    assert found == [None, "spare", "outvoted"]
    assert checker.summary()["left_out"] == {"outvoted": 1, "spare": 1}
    assert reasons(samples("56"))[0] == ["outvoted"] * 2  # a tie
    assert reasons(samples("5"))[0] == ["outvoted"]
    assert reasons(samples("655"), ("outvoted",))[0] == ["outvoted", None, None]
    assert not {"outvoted", "spare"} & set(TraceChecker().summary()["flags"])


def test_a_sample_without_an_answer_is_one_that_does_not_agree():
    cut, empty = (trace("q", 2, text, outcome=Outcome.LENGTH) for text in ("The answer is 5.", ""))
    assert reasons([*samples("55"), cut])[0] == [None, "spare", "outvoted"]
    assert reasons([*samples("5"), cut])[0] == ["outvoted"] * 2
    assert reasons([*samples("56"), empty])[0] == ["outvoted", "outvoted", None]  # has nothing to train on


def test_the_kept_trace_is_one_that_other_filters_keep():
    refusing = trace("q", 0, "I'm sorry, but I cannot answer this question. The answer is 5.")
    found, _ = reasons([refusing, *samples("555")[1:]], (*AGREED, "refusal"))
    assert found == ["refusal", None, "spare"]


def test_samples_of_a_query_are_no_near_duplicates_of_one_another():
    pytest.importorskip("datasketch")
    found, _ = reasons([*samples("655"), *samples("777", "q ")], (*AGREED, "near_duplicate"))
    assert found == ["outvoted", None, "spare", *["near_duplicate"] * 3]


def test_samples_of_an_oracle_err_apart():
    """So their majority is wrong half as often as one of them at most."""
    puzzles = make_puzzles("object_counting", difficulties=(1, 2), count=200, seed=0, split="train")
    teacher = OracleTeacher("t", puzzles, Knobs(brevity=0, reach=9, error_rate=0.3))
    every = [
        trace(p.id, sample, reply.text, target=p.target)
        for p in puzzles
        for sample in range(3)
        for reply in [asyncio.run(teacher.reply([Message("user", p.question)], Sampling(seed=sample)))]
    ]
    found, checker = reasons(every)
    wrong = checker.flags["disagrees"] / len(every)
    kept = [one for one, reason in zip(every, found) if reason is None]
    wrong_kept = sum(not agrees(one.answer, one.target) for one in kept) / len(kept)
    assert 0.2 < wrong < 0.4
    assert wrong_kept < wrong / 2
    assert len(kept) > 0.6 * len(puzzles)


CHECKED = ("missteps", "later")


def of_puzzles(puzzles, knobs, samples=3):
    """An oracle's samples, each query's one after the other."""
    teacher, asks = OracleTeacher("t", puzzles, knobs), Message("system", get(7).text)
    return [
        trace(p.id, sample, reply.text, target=p.target, question=p.question)
        for p in puzzles
        for sample in range(samples)
        for reply in [asyncio.run(teacher.reply([asks, Message("user", p.question)], Sampling(seed=sample)))]
    ]


@pytest.mark.parametrize("family", ["tracking", "object_counting"])
def test_the_first_sample_whose_steps_check_is_kept_of_each_query(family):
    puzzles = make_puzzles(family, difficulties=(4,), count=60, seed=0, split="train")
    every = of_puzzles(puzzles, Knobs(brevity=0, reach=9, error_rate=0.5))
    by_question = {puzzle.question: puzzle for puzzle in puzzles}
    checker = TraceChecker(CHECKED, puzzles=by_question)
    kept = [one for _, one, flags in checker.stream(enumerate(every)) if checker.reason(flags) is None]
    true = [one for one in every if not check_steps(by_question[one.messages[0].content], one.answer).wrong]
    assert [one.id for one in kept] == [next(t.id for t in true if t.query_id == q) for q in by_query(true)]
    assert 0.8 < len(kept) / len(puzzles) < 1
    assert checker.summary()["flags"]["later"] > 0


def by_query(traces):
    return dict.fromkeys(one.query_id for one in traces)


def test_the_usual_last_line_of_a_puzzle_is_its_answer():
    puzzles = make_puzzles("tracking", difficulties=(4,), count=60, seed=0, split="train")
    every = of_puzzles(puzzles, Knobs(brevity=0, reach=9, error_rate=0.3))
    checker = TraceChecker(AGREED, puzzles={puzzle.question: puzzle for puzzle in puzzles})
    kept = [one for _, one, flags in checker.stream(enumerate(every)) if checker.reason(flags) is None]
    right = [one.answer.endswith(f" {one.target}") for one in kept]
    assert len(kept) > 0.6 * len(puzzles)
    assert sum(right) / len(right) > 0.9
    assert not [reason for reason in reasons(every)[0] if reason is None], "without the puzzles none is read"


def test_what_asks_no_puzzle_does_not_check():
    assert reasons(samples("55"), ("missteps",))[0] == ["missteps"] * 2
    assert reasons(samples("555"), ("later",))[0] == [None, "later", "later"]
