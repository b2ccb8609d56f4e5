from __future__ import annotations

import asyncio
import dataclasses
import statistics

import pytest

from orca_jax.queries import system_messages
from orca_jax.queries.puzzles import FAMILIES, make_puzzles
from orca_jax.queries.puzzles.oracles import (
    APPRENTICE,
    EXPERT,
    Knobs,
    OracleTeacher,
    check_steps,
    right_lines,
    wanted_style,
)
from orca_jax.records import Message, Outcome, Sampling

PUZZLES = [
    puzzle
    for name in FAMILIES
    for puzzle in make_puzzles(name, difficulties=(1, 2, 3, 4), count=20, seed=1, split="train")
]
EASY = [puzzle for puzzle in PUZZLES if puzzle.difficulty <= APPRENTICE.reach]


def ask(teacher, puzzle, message_id=3, sampling=None):
    messages = [Message("user", puzzle.question)]
    if text := system_messages.get(message_id).text:
        messages.insert(0, Message("system", text))
    return asyncio.run(teacher.reply(messages, sampling or Sampling()))


def replies(knobs, puzzles, message_id=3, seed=0):
    teacher = OracleTeacher("teacher", puzzles, knobs, seed)
    return [ask(teacher, puzzle, message_id).text for puzzle in puzzles]


def is_right(puzzle, text):
    return text.endswith(puzzle.instance.closing(puzzle.target))


def test_expert_solves_everything_with_all_steps():
    for puzzle, text in zip(PUZZLES, replies(EXPERT, PUZZLES)):
        assert is_right(puzzle, text)
        score = check_steps(puzzle, text)
        assert score.expected == score.stated == score.correct


@pytest.mark.parametrize("message_id", range(1, 17))
def test_expert_obeys_the_system_message(message_id):
    style = system_messages.get(message_id).style
    for puzzle, text in zip(PUZZLES[::7], replies(EXPERT, PUZZLES[::7], message_id)):
        simple = "\n".join(map(FAMILIES[puzzle.family].simple, puzzle.steps))
        steps = "\n".join(puzzle.steps)
        assert (
            text
            == {
                "bare": puzzle.target,
                "steps": f"{steps}\n{puzzle.instance.closing(puzzle.target)}",
                "simple": f"{simple}\n{puzzle.instance.closing(puzzle.target)}",
                "answer_first": f"The answer is {puzzle.target}. Here is why:\n{steps}",
            }[style]
        )


def test_missing_and_foreign_system_messages():
    puzzle = PUZZLES[0]
    teacher = OracleTeacher("expert", PUZZLES, EXPERT)
    assert ask(teacher, puzzle, 1).text == puzzle.target
    messages = [Message("system", "You are a pirate."), Message("user", puzzle.question)]
    assert asyncio.run(teacher.reply(messages, Sampling())).text == ask(teacher, puzzle, 3).text


def test_error_rate_shows_in_wrong_steps_alone():
    for rate in (0.0, 0.3, 1.0):
        texts = replies(Knobs(brevity=0.0, reach=4, error_rate=rate), PUZZLES)
        mistaken = [check_steps(p, text).wrong > 0 for p, text in zip(PUZZLES, texts)]
        assert statistics.mean(mistaken) == pytest.approx(rate, abs=0.08)


def test_brevity_is_the_share_of_skipped_steps_and_changes_no_answer():
    for brevity in (0.0, 0.5, 0.9):
        texts = replies(Knobs(brevity=brevity, reach=4, error_rate=0.0), PUZZLES)
        assert all(map(is_right, PUZZLES, texts))
        scores = list(map(check_steps, PUZZLES, texts))
        skipped = sum(s.expected - s.stated for s in scores) / sum(s.expected - 1 for s in scores)
        assert skipped == pytest.approx(brevity, abs=0.04)
        assert not any(score.wrong for score in scores)


def test_beyond_its_reach_a_teacher_guesses_without_valid_steps():
    texts = replies(Knobs(brevity=0.0, reach=0, error_rate=0.0), PUZZLES)
    assert all(check_steps(puzzle, text).correct == 0 for puzzle, text in zip(PUZZLES, texts))
    right = [is_right(puzzle, text) for puzzle, text in zip(PUZZLES, texts)]
    chance = statistics.mean(puzzle.chance for puzzle in PUZZLES)
    assert statistics.mean(right) == pytest.approx(chance, abs=0.08)
    for puzzle, text in zip(EASY, replies(APPRENTICE, EASY)):
        assert not text.startswith("I think") or puzzle.difficulty > APPRENTICE.reach


def test_lengths_go_in_the_papers_direction():
    """Orca, Figure 9: GPT-4 is shorter than ChatGPT under ids 1 and 5, longer under 3, 4, 6, 7, 8, 10, 13."""
    for message_id in (1, 5, 3, 4, 6, 7, 8, 10, 13):
        expert, apprentice = (
            statistics.median(len(text.split()) for text in replies(knobs, PUZZLES[::9], message_id))
            for knobs in (EXPERT, APPRENTICE)
        )
        assert expert < apprentice if message_id in (1, 5) else expert > apprentice, message_id


def test_replies_depend_on_question_message_identity_and_sampling_seed_only():
    few = EASY[::4]

    def texts(seed=0, sampling=None, puzzles=few):
        teacher = OracleTeacher("apprentice", puzzles, APPRENTICE, seed)
        return [ask(teacher, puzzle, sampling=sampling).text for puzzle in few]

    assert texts() == texts(puzzles=few[::-1])
    assert texts() != texts(seed=1)
    assert texts() != texts(sampling=Sampling(seed=3))


def test_identity_names_teacher_knobs_and_seed():
    identities = {
        OracleTeacher(name, (), knobs, seed).identity
        for name in ("a", "b")
        for knobs in (EXPERT, APPRENTICE, dataclasses.replace(EXPERT, reach=3))
        for seed in (0, 1)
    }
    assert len(identities) == 12
    assert OracleTeacher("a", (), EXPERT).identity == OracleTeacher("a", PUZZLES, EXPERT).identity


def test_unknown_question_is_refused():
    reply = ask(OracleTeacher("expert", PUZZLES[1:], EXPERT), PUZZLES[0])
    assert reply.outcome is Outcome.REFUSED
    assert reply.text


def test_token_limit_cuts_the_reply():
    teacher = OracleTeacher("expert", PUZZLES, EXPERT)
    full = ask(teacher, PUZZLES[0])
    cut = ask(teacher, PUZZLES[0], sampling=Sampling(max_tokens=3))
    assert (full.outcome, cut.outcome) == (Outcome.OK, Outcome.LENGTH)
    assert full.text.startswith(cut.text)
    assert cut.usage.completion_tokens == len(cut.text.split()) == 3


def test_identities_of_usual_knobs_stay():
    """Replies are drawn by them, and an answer in a ledger is found by them."""
    knobs = Knobs(brevity=0.1, reach=2, error_rate=0.05, bare_reply="The answer is {answer}.")
    assert OracleTeacher("apprentice", (), knobs, 0).identity == "apprentice-119c1cbc"
    assert OracleTeacher("expert", (), EXPERT, 1).identity == "expert-b7d73985"


# --- Going on from a reply's right lines


def prompt(puzzle, message_id=3):
    text = system_messages.get(message_id).text
    return ([Message("system", text)] if text else []) + [Message("user", puzzle.question)]


@pytest.mark.parametrize("message_id", [1, 3, 7, 10, 12])
def test_an_expert_goes_on_from_the_first_wrong_line_to_its_own_reply(message_id):
    """In every family and form; a mistake, a line too many and a reply that breaks off are all mended."""
    teacher = OracleTeacher("t", PUZZLES, EXPERT)
    for number, puzzle in enumerate(PUZZLES[::11]):
        own, messages = ask(teacher, puzzle, message_id).text, prompt(puzzle, message_id)
        assert teacher.continued(puzzle, messages, own) == (own, len(own.split("\n")), True)
        lines = own.split("\n")
        cut = number % len(lines)
        for written in ([*lines[:cut], "It rains."], lines[:cut], [*lines[:cut], "It rains.", *lines[cut:]]):
            assert teacher.continued(puzzle, messages, "\n".join(written)) == (own, cut, False)
        assert teacher.continued(puzzle, messages, f"{own}\nIt rains.") == (own, len(lines), False)


def test_a_form_that_the_student_began_is_gone_on_with():
    puzzle = next(puzzle for puzzle in PUZZLES if puzzle.family == "tracking" and puzzle.difficulty == 3)
    lines = [*puzzle.solution("restate").steps, puzzle.instance.closing(puzzle.target)]
    teacher = OracleTeacher("t", [], EXPERT)
    mended = teacher.continued(puzzle, prompt(puzzle), "\n".join(lines[:2]))
    assert (mended.text.split("\n"), mended.kept) == (lines, 2)


def test_a_teacher_that_errs_does_so_after_the_right_lines_only_and_as_often_there():
    puzzles = [puzzle for puzzle in PUZZLES if puzzle.family == "tracking" and puzzle.difficulty == 4]
    teacher = OracleTeacher("t", [], Knobs(brevity=0, reach=9, error_rate=1.0))
    errs = []
    for kept in range(5):
        right = 0
        for puzzle in puzzles:
            for seed in range(20):  # another text after the right lines is another draw
                written = "\n".join([*puzzle.steps[:kept], f"wrong {seed}"])
                mended = teacher.continued(puzzle, prompt(puzzle), written)
                found = right_lines(puzzle, wanted_style(prompt(puzzle)), mended.text)
                assert mended.kept == kept <= found.kept
                right += found.whole
        errs.append(1 - right / len(puzzles) / 20)
    assert (errs[0], errs[4]) == (1, 0), "its mistake is in one of the four steps"
    assert errs[0] > errs[1] > errs[2] > errs[3] > errs[4]
