"""A student that is being trained answers validation puzzles as it does when it is loaded from disk."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from orca_jax.config import LoraConfig, load
from orca_jax.configs import mini as mini_file
from orca_jax.data.prepared import held_out
from orca_jax.evaluation import run
from orca_jax.evaluation.during_training import StudentEvaluation, validation_puzzles
from orca_jax.queries.make import training_puzzles
from orca_jax.records import Outcome, Reply
from orca_jax.serving.local import LocalStudent
from orca_jax.student import lora, parameters, sharding
from tests.student.students import SMALL, make_params
from tests.training import synthetic


def config(**changes):
    given = mini_file.get_config()
    given.update_from_flattened_dict({"train.evaluate_every": 1, "train.evaluate_per_family": 30, **changes})
    return load(given)


@pytest.fixture
def workdir(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path


def evaluation(workdir, student=SMALL, axes=(1, 1, 1), **changes):
    one = config(**{"data.layout": "chatml", "evaluation.max_tokens": 6, **changes})
    mesh = synthetic.mesh(*axes)
    return StudentEvaluation(one, student, mesh, workdir), mesh


def test_validation_puzzles_are_neither_training_queries_nor_test_puzzles():
    one = config(**{"puzzles.per_family": 300})
    made = validation_puzzles(one)
    assert len({puzzle.id for puzzle in made}) == len(made) == 30 * len(one.puzzles.families)
    assert all(held_out(puzzle.id, one) and not puzzle.is_test for puzzle in made)
    queries, _ = training_puzzles(one.puzzles, one.seed)
    trained = {puzzle.id for puzzle in queries if not held_out(puzzle.id, one)}
    tested = {puzzle.id for puzzle in run.test_puzzles(one)}
    assert not {puzzle.id for puzzle in made} & (trained | tested)


def test_a_benchmarks_own_question_is_left_out(tmp_path):
    first, *others = validation_puzzles(config())
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"question": first.question}))
    assert validation_puzzles(config(**{"benchmarks.own_prompts": str(path)})) == others


def test_too_few_puzzles_are_named():
    with pytest.raises(ValueError, match=r"raise data.validation_fraction: .* gave only \d+ of 30"):
        validation_puzzles(config(**{"data.validation_fraction": 1e-5}))


def test_replies_are_those_of_the_same_student_from_disk(workdir, tokenizer):
    """Sharded over a mesh, with its layers stacked and adapters apart, it is as if merged on one device."""
    student = dataclasses.replace(
        SMALL, vocab_size=tokenizer.vocab_size, scan_layers=True, lora=LoraConfig(rank=2)
    )
    evaluated, mesh = evaluation(workdir, student, (2, 2, 2), **{"train.evaluate_per_family": 2})
    params = make_params(student)
    placed = jax.device_put(params, sharding.shardings(params, mesh))
    with jax.set_mesh(mesh):  # as the trainer has it
        replies = evaluated.replies(placed)
    merged, plain = parameters.per_layer(
        lora.merge(params, student.lora), dataclasses.replace(student, lora=LoraConfig())
    )
    alone = LocalStudent(merged, plain, tokenizer, "chatml", checkpoint="c", max_length=1024)
    asked = [run.conversation(question, "") for question in evaluated.questions]
    assert replies == alone.answer(asked, evaluated.sampling)
    assert any(reply.text for reply in replies)
    jax.tree.map(np.testing.assert_array_equal, placed, params)


def test_accuracy_has_its_error_its_chance_and_the_families(workdir, tokenizer, monkeypatch):
    student = dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size)
    evaluated, _ = evaluation(workdir, student, **{"train.evaluate_per_family": 8})
    right = {question.id for question in evaluated.questions if question.task == "navigate"}
    texts = [
        f"So the answer is {q.target}." if q.id in right else "I do not know." for q in evaluated.questions
    ]
    monkeypatch.setattr(evaluated, "replies", lambda params: [Reply(Outcome.OK, text) for text in texts])
    values = evaluated(None)
    assert (values["accuracy"], values["n"], values["unparsed"]) == (0.25, 32, 0.75)
    chances = [question.chance for question in evaluated.questions]
    assert values["chance"] == pytest.approx(np.mean(chances))
    assert values["stderr"] >= 0
    assert {name: value for name, value in values.items() if "=" in name} == {
        f"accuracy/family={name}": float(name == "navigate") for name in mini_file.FAMILIES
    }
