import dataclasses
import json

import pytest

from orca_jax.evaluation.benchmarks.base import EvaluationError, Question
from orca_jax.evaluation.run import RecordedReply, collect_replies
from orca_jax.files import read_jsonl
from orca_jax.records import Outcome, RecordError, Reply, Sampling, Usage

QUESTIONS = [
    Question(benchmark="b", task="t", id=str(i), text="x" * (7 * i % 11), target=str(i)) for i in range(10)
]
LINE_SEPARATOR = "\u2028"


class Model:
    """Answers, last question first, with the prompt's length and its round's seed; may be killed."""

    def __init__(self, killed_after=None):
        self.rounds, self.killed_after = [], killed_after

    def __call__(self, conversations, sampling, numbers):
        if len(self.rounds) == self.killed_after:
            raise KeyboardInterrupt
        self.rounds.append([len(messages[-1].content) for messages in conversations])
        texts = [
            f"{len(m[-1].content)}{LINE_SEPARATOR}{sampling.seed} {number} {len(m)}"
            for number, m in zip(numbers, conversations, strict=True)
        ]
        for index in reversed(range(len(texts))):
            yield index, Reply(Outcome.OK, texts[index], Usage(1, 2), {"finish": "stop"})


def run(directory, model, *, questions=QUESTIONS, seed=3, system_text="", **options):
    return collect_replies(
        questions, model, directory, sampling=Sampling(temperature=0.7), seed=seed, system_message_id=1,
        system_text=system_text, round_size=3, **options,
    )  # fmt: skip


def test_every_question_gets_its_own_reply_in_order_and_rounds_are_of_like_length(tmp_path):
    model, seen = Model(), []
    replies = run(tmp_path, model, progress=seen.append)
    for question, reply in zip(QUESTIONS, replies, strict=True):
        assert reply.text.startswith(f"{len(question.text)}{LINE_SEPARATOR}")
    asked = [length for round_ in model.rounds for length in round_]
    assert asked == sorted(len(question.text) for question in QUESTIONS)
    assert seen == list(range(1, 11))


def test_a_finished_evaluation_asks_nothing_again(tmp_path):
    first = run(tmp_path, Model())
    assert run(tmp_path, Model(killed_after=0)) == first


@pytest.mark.parametrize("torn", [0, 1, 25, 400])
def test_an_interrupted_evaluation_ends_with_the_same_replies(tmp_path, torn):
    whole = run(tmp_path / "whole", Model())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Model(killed_after=2))
    path = tmp_path / "killed" / "replies.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size - torn])
    model = Model()
    assert run(tmp_path / "killed", model) == whole
    assert len(model.rounds) < 4
    requests = [recorded.request for recorded in read_jsonl(path, RecordedReply)]
    assert len(requests) == len(set(requests)) == len(QUESTIONS)


def test_rounds_and_seeds_draw_differently(tmp_path):
    seeds = {reply.text.split()[1] for reply in run(tmp_path / "a", Model())}
    others = {reply.text.split()[1] for reply in run(tmp_path / "b", Model(), seed=4)}
    assert len(seeds) == len(others) == 4
    assert not seeds & others


def test_rows_say_what_was_asked(tmp_path):
    run(tmp_path, Model(), system_text="Think.")
    with open(tmp_path / "replies.jsonl", encoding="utf-8") as file:
        row = json.loads(file.readline())
    expected = {"benchmark": "b", "task": "t", "mode": "robust", "seed": 3, "system_message_id": 1}
    assert {key: row[key] for key in expected} == expected
    assert (row["outcome"], row["raw"]) == ("ok", {"finish": "stop"})
    assert row["text"].endswith(" 2")


@pytest.mark.parametrize("change", [{"seed": 4}, {"system_text": "Think."}, {"questions": QUESTIONS[:5]}])
def test_replies_to_other_requests_are_refused(tmp_path, change):
    run(tmp_path, Model())
    with pytest.raises(EvaluationError, match="use another directory"):
        run(tmp_path, Model(), **change)


def test_too_few_replies_and_repeated_questions_are_errors(tmp_path):
    with pytest.raises(EvaluationError, match="asked 3 questions at once and got 1"):
        run(tmp_path, lambda *asked: [(0, Reply(Outcome.OK, "x"))])
    with pytest.raises(EvaluationError, match="same benchmark, task and id"):
        run(tmp_path, Model(), questions=[QUESTIONS[0], QUESTIONS[0]])
    other_text = dataclasses.replace(QUESTIONS[0], text="Another?")
    with pytest.raises(EvaluationError, match="same benchmark, task and id"):
        run(tmp_path, Model(), questions=[QUESTIONS[0], other_text])


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "replies.jsonl"
    run(tmp_path, Model())
    path.write_bytes(path.read_bytes() + b"{oops\n")
    with pytest.raises(RecordError, match=r"replies\.jsonl:11"):
        run(tmp_path, Model())


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_answered_by_several_hosts_are_the_whole(tmp_path, parts):
    whole = run(tmp_path / "whole", Model())
    models = [Model() for _ in range(parts)]
    answered = [run(tmp_path / "split", one, part=(i, parts)) for i, one in enumerate(models, 1)]
    assert sum(map(len, answered)) == len(QUESTIONS)
    assert run(tmp_path / "split", Model(killed_after=0)) == whole
    assert len((tmp_path / "split" / "replies.jsonl").read_bytes().splitlines()) == len(QUESTIONS)


def test_a_killed_host_asks_what_is_missing_and_so_does_the_whole(tmp_path):
    whole = run(tmp_path / "whole", Model())
    run(tmp_path / "split", Model(), part=(1, 2))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "split", Model(killed_after=1), part=(2, 2))
    again = Model()
    run(tmp_path / "split", again, part=(2, 2))
    assert len(again.rounds) == len(range(0, len(QUESTIONS), 3)) - 1 - (len(QUESTIONS) % 3 == 1)
    (tmp_path / "split" / "replies-1-of-2.jsonl").unlink()
    last = Model()
    assert run(tmp_path / "split", last) == whole
    assert last.rounds


def test_a_part_of_other_questions_is_named(tmp_path):
    run(tmp_path, Model(), seed=4, part=(2, 2))
    with pytest.raises(EvaluationError, match=r"replies-2-of-2.jsonl holds \d+ replies to other"):
        run(tmp_path, Model())
