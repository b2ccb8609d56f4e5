"""Puzzles as records: splits, determinism, contents, corruption, and the steps of every family."""

from __future__ import annotations

import dataclasses
import random

import pytest

from orca_jax import records
from orca_jax.queries import puzzles as puzzles_package
from orca_jax.queries.puzzles import BBH_FAMILIES, FAMILIES, make_puzzles, to_query, without
from orca_jax.queries.puzzles.base import Family, Slip, content_hash


def sample(name, count=40):
    family = FAMILIES[name]
    levels = list(family.difficulties)
    return [family.generate(random.Random(f"{name}{i}"), levels[i % len(levels)]) for i in range(count)]


@pytest.mark.parametrize("name", FAMILIES)
def test_puzzle_states_its_steps_one_a_line_and_a_possible_answer(name):
    for puzzle in sample(name):
        assert puzzle.steps
        assert all(step and "\n" not in step for step in puzzle.steps)
        assert not puzzle.choices or puzzle.target in puzzle.choices
        assert puzzle.chance == (1 / len(puzzle.choices) if puzzle.choices else 0)
        assert puzzle.task.startswith(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_difficulty_lengthens_the_solution(name):
    family = FAMILIES[name]
    assert len(family.difficulties) >= 4

    def words(level):
        puzzles = [family.generate(random.Random(seed), level) for seed in range(40)]
        return sum(len(f"{puzzle.question} {' '.join(puzzle.steps)}".split()) for puzzle in puzzles)

    assert words(family.difficulties[-1]) > words(1)


@pytest.mark.parametrize("name", FAMILIES)
def test_unknown_difficulty_is_named(name):
    with pytest.raises(ValueError, match=rf"{name} has difficulties 1 to \d+, not 99"):
        FAMILIES[name].generate(random.Random(0), 99)


@pytest.mark.parametrize("name", FAMILIES)
def test_mistake_shows_in_a_step_and_is_usually_carried_to_the_answer(name):
    rng, wrong = random.Random(0), 0
    puzzles = sample(name, 60)
    for puzzle in puzzles:
        solution = puzzle.mistaken(rng)
        assert solution.answer in puzzle.choices or not puzzle.choices
        wrong += solution.answer != puzzle.target
        assert solution.answer == puzzle.target or solution.steps != puzzle.steps
    assert wrong > len(puzzles) / 2


@pytest.mark.parametrize("name", BBH_FAMILIES)
def test_simple_words_differ_but_keep_the_answer(name):
    family = FAMILIES[name]
    for puzzle in sample(name, 10):
        simple = [family.simple(step) for step in puzzle.steps]
        assert simple != list(puzzle.steps)
        assert "None" not in " ".join(simple)


def test_slip_errs_at_the_planned_decision_only():
    slip = Slip(1, random.Random(0))
    assert [slip(1, 2), slip(1, 2), slip(1, 2)] == [1, 2, 1]
    assert slip.decisions == 3
    assert Slip(0)(1, 1) == 1  # no alternative differs


@pytest.mark.parametrize("name", FAMILIES)
def test_splits_are_disjoint_whatever_the_seeds(name):
    train = [p for seed in (0, 1, 2) for p in make_puzzles(
        name, difficulties=(1, 2), count=100, seed=seed, split="train")]  # fmt: skip
    test = [p for seed in (0, 7) for p in make_puzzles(
        name, difficulties=(1, 2), count=20, seed=seed, split="test")]  # fmt: skip
    assert not any(puzzle.is_test for puzzle in train)
    assert all(puzzle.is_test for puzzle in test)
    assert not {content_hash(p.content) for p in train} & {content_hash(p.content) for p in test}


def test_split_share_and_normalisation():
    (puzzle,) = sample("navigate", 1)

    def is_test(content):
        return dataclasses.replace(puzzle, content=content).is_test

    assert is_test("Does  Ada\nlie?") == is_test("does ada lie?")
    share = sum(is_test(f"question {number}") for number in range(4000)) / 4000
    assert 0.08 < share < 0.12


def test_option_order_is_not_content():
    family = FAMILIES["tracking_shuffled_objects"]
    puzzle = family.generate(random.Random(0), 2)
    stem, options = puzzle.question.split("\nOptions:\n")
    texts = [line[4:] for line in options.splitlines()]
    assert puzzle.content == "\n".join([stem, *sorted(texts)])


def test_made_puzzles_are_distinct_reproducible_and_cycle_through_difficulties():
    request = {"difficulties": (1, 3), "count": 30, "seed": 5, "split": "train"}
    made = make_puzzles("navigate", **request)
    assert made == make_puzzles("navigate", **request)
    assert made[:10] == make_puzzles("navigate", **{**request, "count": 10})
    assert made != make_puzzles("navigate", **{**request, "seed": 6})
    assert [puzzle.difficulty for puzzle in made] == [1, 3] * 15
    assert len({puzzle.id for puzzle in made}) == len({puzzle.question for puzzle in made}) == 30


def test_exhausted_family_says_how_many_it_found(monkeypatch):
    monkeypatch.setattr(puzzles_package, "_PATIENCE", 200)
    with pytest.raises(ValueError, match=r"dyck_languages gave only \d+ of 20000 distinct test puzzles"):
        make_puzzles("dyck_languages", difficulties=(1,), count=20000, seed=0, split="test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "sudoku"}, "unknown puzzle family 'sudoku'"),
        ({"difficulties": ()}, "at least one difficulty"),
    ],
)
def test_bad_requests_are_named(changes, message):
    request = {"family": "navigate", "difficulties": (1,), "count": 1, "seed": 0, "split": "train"} | changes
    with pytest.raises(ValueError, match=message):
        make_puzzles(request.pop("family"), **request)


def test_query_carries_the_puzzle():
    puzzle = sample("web_of_lies", 1)[0]
    query = to_query(puzzle, 7)
    assert (query.id, query.text, query.target) == (puzzle.id, puzzle.question, puzzle.target)
    assert (query.collection, query.task, query.system_message_id) == ("puzzles", "web_of_lies", 7)
    assert query.multiple_choice
    assert query.extra == {"family": "web_of_lies", "difficulty": 1, "chance": 0.5}
    assert records.from_json(records.Query, records.to_json(query)) == query


def test_known_texts_are_dropped_in_any_case_spacing_and_option_order():
    puzzles = make_puzzles("logical_deduction", difficulties=(1, 2), count=20, seed=0, split="train")
    stem, options = puzzles[3].question.split("\nOptions:\n")
    texts = [line[4:] for line in options.splitlines()][::-1]
    lettered = [f"({label}) {text}" for label, text in zip("ABC", texts)]
    benchmark = [puzzles[0].question.upper(), "\n".join([f" {stem}", "Options:", *lettered]), "another"]
    assert without(puzzles, benchmark) == [*puzzles[1:3], *puzzles[4:]]


def test_a_family_without_steps_and_answer_is_refused():
    with pytest.raises(TypeError, match="Riddles defines neither solve nor trace"):
        type("Riddles", (Family,), {"name": "riddles"})
