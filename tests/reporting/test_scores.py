"""One evaluation's scores as a table."""

from orca_jax.evaluation import scoring
from orca_jax.evaluation.questions import Question
from orca_jax.records import Outcome, Reply
from orca_jax.reporting import tables


def test_every_task_and_aggregate_stands_in_the_table_with_the_mode():
    extra = {"labels": ["A", "B"], "continuations": ["aa", "b"]}
    questions = [Question("b", "t", str(i), "?", "A", (), None, 0.5, extra=extra) for i in range(4)]
    replies = [Reply(Outcome.OK, "", raw={"log_likelihoods": [-1.0, -2.0 + i]}) for i in range(4)]
    items = scoring.score(questions, replies, seed=0, mode="loglik", system_message_id=None)
    groups = [scoring.Group("paper", ("t", "u"), "macro")]
    table = tables.score_table(scoring.summarise(items, questions, groups=groups))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["b, mode loglik", "n", "accuracy", "unparsed", "chance", "majority", "acc_norm"]
    assert rows[2] == ["t", "4", "25.0 [4.6, 69.9]", "25.0", "–", "50.0", "50.0 [15.0, 85.0]"]
    assert [row[0] for row in rows[3:6]] == [
        "macro (macro of 1)",
        "micro (micro of 1)",
        "paper (macro of 1, 1 missing)",
    ]


def test_a_part_and_its_aggregates_say_of_how_many():
    row = {"accuracy": 1.0, "stderr": 0.0, "unparsed": 0.0}
    group = {**row, "kind": "macro", "tasks": 2, "missing": ["x"] * 21}
    table = tables.score_table(
        {
            "benchmark": "bbh",
            "mode": "robust",
            "tasks": {"snarks": {"n": 2, **row}, "navigate": {"n": 250, **row}},
            "groups": {"paper23": {"n": 252, **group}, "micro": {"n": 252, **group, "kind": "micro"}},
        }
    )
    lines = (" ".join(line.split()) for line in table.splitlines() if "|" in line)
    rows = {line.split("|")[1].strip(): line for line in lines}
    assert "| 2 of 178 | 100.0 [34.2, 100.0] |" in rows["snarks"]
    assert "| 252 of 428 | 100.0 [67.1, 100.0] |" in rows["paper23 (macro of 2, 21 missing)"]
    assert "| 100.0 [98.4, 100.0] |" in rows["micro (micro of 2, 21 missing)"]
    assert "[the 95 % interval]" in table
    assert "n of N: a part" in table


def test_replies_without_a_right_answer_have_their_outcomes_and_what_was_measured():
    found = {"n": 3, "outcomes": {"ok": 2, "empty": 1}}
    assert tables.unscored_sentence(found) == (
        "3 replies (1 empty, 2 ok), which have no right answer: a judge or a classifier scores them."
    )
    assert tables.unscored_sentence({"n": 1, "outcomes": {"ok": 1}}, "vicuna_prompts-open_ended").startswith(
        "1 reply, a part of 80 (1 ok), which have"
    )
    verdicts = {"per_cent": {"reference_first": 98.0}, "interval": [90.0, 106.0], "questions": 2}
    assert tables.unscored_sentence(verdicts, "judged-vicuna_prompts-chatgpt") == (
        "Candidate over reference by a judge, 2 questions, a part of 80: reference first 98.0 % "
        "(95 % 90.0 to 106.0)."
    )
    toxicity = {"macro": 0.25, "stderr": 0.01, "tasks": {"women": {}, "asian": {}}}
    assert tables.unscored_sentence(found | {"toxicity": toxicity}).endswith(
        "no right answer; mean probability of toxicity 25.0 ± 1.0 % over 2 groups."
    )
