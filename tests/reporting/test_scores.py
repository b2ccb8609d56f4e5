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
