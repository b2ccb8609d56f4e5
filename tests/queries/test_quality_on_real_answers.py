"""Agreement and flags on the answers of real models."""

import collections
import json
import re

import pytest

from orca_jax import conversations
from orca_jax.queries.agreement import agrees, final_answer, majority
from orca_jax.queries.quality import TraceChecker

pytestmark = pytest.mark.realdata


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_agreement_on_chains_of_thought_is_the_stored_accuracy(shared_data):
    """code-davinci-002 on 14 BBH tasks: "the answer is" and the target, as their authors scored it."""
    wrong = checked = unlike = 0
    for path in sorted((shared_data / "bbh_codex/cot").glob("*.jsonl")):
        for row in rows(path)[::2]:
            said = re.search(r"the answer is (.*)", row["prediction"])
            right = said is not None and said[1].strip().removesuffix(".") == row["target"]
            found = agrees(row["prediction"], row["target"], row["question_tail"])
            if found is not None:
                checked += 1
                wrong += found != right
                final, target = (final_answer(row[n], row["question_tail"]) for n in ("prediction", "target"))
                unlike += (final == target) != right
    assert checked > 1500
    assert wrong <= 2
    assert unlike <= 2


MODELS = ("gpt-3.5-turbo-0301", "gpt-3.5-turbo-0613", "gpt-4-0314", "gpt-4-0613")


def test_agreement_with_yes_and_no(shared_data):
    counts, finals = collections.Counter(), collections.Counter()
    for row in rows(shared_data / "two_teacher/prime_600.jsonl"):
        for model in MODELS:
            if said := re.findall(r"\[(Yes|No)\]", row[model]):
                right = said[-1].lower() == row["answer_key"].lower()
                counts[agrees(row[model], row["answer_key"], row["instruction"]) == right] += 1
                finals[final_answer(row[model], row["instruction"]) == said[-1].lower()] += 1
    assert counts[True] > 2200
    assert counts[False] <= 1
    assert finals[True] > 2200
    assert finals[False] <= 6


def test_the_majority_of_three_models_is_right_more_often_than_the_best_of_them(shared_data):
    right, elected = collections.Counter(), 0
    for row in rows(shared_data / "two_teacher/prime_600.jsonl"):
        said = [final_answer(row[model], row["instruction"]) for model in MODELS[:3]]
        most, target = majority(said), row["answer_key"].lower()
        elected += most is not None
        right.update(model for model, answer in zip((*MODELS[:3], "most"), (*said, most)) if answer == target)
    assert elected > 570
    assert right["most"] / elected > max(right[model] for model in MODELS[:3]) / 600 + 0.02


def test_flags_of_openorca(shared_data):
    checker = TraceChecker()
    for trace in conversations.read_traces(shared_data / "openorca/gpt4_600.jsonl", teacher="gpt-4"):
        checker.check(trace)
    flags = checker.flags
    assert (flags["duplicate"], flags["refusal"], flags["repetitive"]) == (2, 0, 0)
    assert (flags["self_identification"], flags["truncated"]) == (4, 1)
    assert flags["unchecked"] == 600  # OpenOrca has no targets
