import pytest

from orca_jax.evaluation import scoring
from orca_jax.evaluation.benchmarks import puzzles as benchmark
from orca_jax.queries.puzzles import FAMILIES, make_puzzles
from orca_jax.records import Outcome, Reply


@pytest.fixture(scope="module")
def puzzles():
    return [
        puzzle
        for family in FAMILIES
        for puzzle in make_puzzles(family, difficulties=(1, 2), count=6, seed=0, split="test")
    ]


def evaluated(puzzles, texts):
    questions = benchmark.questions(puzzles)
    replies = [Reply(Outcome.OK, text) for text in texts]
    items = scoring.score(questions, replies, seed=0, mode="robust", system_message_id=1)
    return items, scoring.summarise(items, questions)


def test_the_true_solution_is_right_in_every_family_whether_bare_or_with_steps(puzzles):
    bare = [puzzle.target for puzzle in puzzles]
    with_steps = ["\n".join([*p.steps, f"So the answer is {p.target}."]) for p in puzzles]
    first = [f"The answer is {p.target}. Here is why:\n" + "\n".join(p.steps) for p in puzzles]
    for texts in (bare, with_steps, first):
        items, scores = evaluated(puzzles, texts)
        assert [item.id for item in items if not item.correct] == []
        assert scores["macro"] == 1
        assert set(scores["tasks"]) == set(FAMILIES)


def test_items_keep_family_difficulty_and_step_scores(puzzles):
    texts = ["\n".join([*p.steps, f"So the answer is {p.target}."]) for p in puzzles]
    items, _ = evaluated(puzzles, texts)
    for puzzle, item in zip(puzzles, items):
        assert (item.extra["family"], item.extra["difficulty"]) == (puzzle.family, puzzle.difficulty)
        assert item.extra["steps"] == {
            "expected": len(puzzle.steps), "stated": len(puzzle.steps), "correct": len(puzzle.steps),
        }  # fmt: skip


def test_another_choice_is_wrong_and_silence_is_unparsed(puzzles):
    closed = [puzzle for puzzle in puzzles if len(puzzle.choices) > 1]
    wrong = [next(choice for choice in p.choices if choice != p.target) for p in closed]
    items, scores = evaluated(closed, wrong)
    assert not any(item.correct for item in items)
    assert scores["groups"]["micro"]["unparsed"] == 0
    _, silent = evaluated(closed, ["I cannot say."] * len(closed))
    assert silent["groups"]["micro"]["unparsed"] == 1


def test_chance_is_the_puzzles_and_the_prompt_its_question(puzzles):
    for puzzle, question in zip(puzzles, benchmark.questions(puzzles)):
        assert (question.text, question.chance) == (puzzle.question, puzzle.chance)
        assert 1 / 6 <= question.majority <= 1
