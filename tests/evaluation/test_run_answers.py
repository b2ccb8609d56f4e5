"""Answers that are more than one reply: two stages, and choosing by likelihood."""

import pytest

from orca_jax.evaluation import run as evaluation_run
from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage

CUE = "Therefore, the answer is"


def question(number, *texts):
    extra = {"labels": list("ABC"[: len(texts)]), "continuations": list(texts)}
    return Question("b", "t", str(number), f"Q{number}", "A", mode="lm_eval_loglik", extra=extra)


def test_the_second_stage_sees_prompt_reply_and_cue_and_its_reply_counts():
    asked = []

    def first(conversations, sampling):
        yield from (
            (i, Reply(Outcome.LENGTH, "Hm.", Usage(1, 2))) for i in reversed(range(len(conversations)))
        )

    def second(conversations, sampling):
        asked.extend(conversations)
        yield from ((i, Reply(Outcome.OK, f"B{i}", Usage(3, 4), {"x": 1})) for i in range(len(conversations)))

    system = Message("system", "Be brief.")
    conversations = [(system, Message("user", "Q0")), (Message("user", "Q1"),)]
    replies = dict(evaluation_run.two_stages(first, second, CUE)(conversations, Sampling()))
    assert replies[1] == Reply(Outcome.OK, "B1", Usage(4, 6), {"x": 1, "first_reply": "Hm."})
    assert asked[0] == (system, Message("user", f"Q0\nHm.\n{CUE}"))


def scores(asked):
    return [-float(len(text)) for _, text in asked]


def test_likelihoods_are_kept_in_the_reply_and_the_likeliest_is_its_text(tmp_path):
    questions = [question(0, "long one", "b"), question(1, "a", "bb", "ccc")]
    answer = evaluation_run.by_likelihood(scores, questions, "Think.")
    found = evaluation_run.collect_replies(
        questions, answer, tmp_path, sampling=Sampling(), seed=0, system_message_id=None,
        system_text="Think.", round_size=1,
    )  # fmt: skip
    assert [reply.text for reply in found] == ["b", "a"]
    assert found[1].raw == {"log_likelihoods": [-1.0, -2.0, -3.0]}
    kept = {r.id: r.reply for r in evaluation_run.read_replies(tmp_path / evaluation_run.REPLIES)}
    items = scoring.score(
        questions, [kept["0"], kept["1"]], seed=0, mode="lm_eval_loglik", system_message_id=None
    )
    assert [item.answer for item in items] == ["B", "A"]


def test_one_prompt_with_two_sets_of_continuations_is_refused():
    questions = [question(0, "a", "b"), Question("b", "t", "1", "Q0", "A", extra={"continuations": ["c"]})]
    with pytest.raises(ValueError, match="t/1: another question has the same prompt"):
        evaluation_run.by_likelihood(scores, questions, "")
