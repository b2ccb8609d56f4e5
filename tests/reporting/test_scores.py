"""One examination's scores as a table."""

from orca_jax.evaluation import scoring
from orca_jax.evaluation.questions import Question
from orca_jax.records import Outcome, Reply
from orca_jax.reporting import scores as score_tables


def test_every_task_and_aggregate_stands_in_the_table_with_the_mode():
    extra = {"labels": ["A", "B"], "continuations": ["aa", "b"]}
    questions = [Question("b", "t", str(i), "?", "A", (), None, 0.5, extra=extra) for i in range(4)]
    replies = [Reply(Outcome.OK, "", raw={"log_likelihoods": [-1.0, -2.0 + i]}) for i in range(4)]
    items = scoring.score(questions, replies, seed=0, mode="loglik", system_message_id=None)
    groups = [scoring.Group("paper", ("t", "u"), "macro")]
    table = score_tables.table(scoring.summarise(items, questions, groups=groups))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["b, mode loglik", "n", "accuracy", "unparsed", "chance", "majority", "acc_norm"]
    assert rows[2] == ["t", "4", "25.0 ± 21.7", "25.0", "–", "50.0", "50.0 ± 25.0"]
    assert [row[0] for row in rows[3:]] == [
        "macro (macro of 1)",
        "micro (micro of 1)",
        "paper (macro of 1, 1 missing)",
    ]


def test_replies_without_a_right_answer_have_their_outcomes_and_what_was_measured():
    found = {"n": 3, "outcomes": {"ok": 2, "empty": 1}}
    assert score_tables.unscored(found) == (
        "3 replies (1 empty, 2 ok), which have no right answer: a judge or a classifier scores them."
    )
    toxicity = {"macro": 0.25, "stderr": 0.01, "tasks": {"women": {}, "asian": {}}}
    assert score_tables.unscored(found | {"toxicity": toxicity}).endswith(
        "no right answer; mean probability of toxicity 25.0 ± 1.0 % over 2 groups."
    )
