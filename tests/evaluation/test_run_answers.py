"""Answers that are more than one reply: AGIEval's two stages."""

from orca_jax.evaluation import run as evaluation_run
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage

CUE = "Therefore, the answer is"


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
