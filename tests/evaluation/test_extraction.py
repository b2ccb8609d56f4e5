import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.evaluation import extraction

CODEX = Path(__file__).resolve().parents[2] / "../shared/data/bbh_codex/cot"
YES_NO, BOOLEAN, VALIDITY = ("Yes", "No"), ("True", "False"), ("valid", "invalid")
DATES = {"options": ("12/08/1928", "11/08/1928", "10/08/1928")}
few = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The answer is (C).", "C"),
        ("Answer: C", "A"),
        ("Based on (C)", "B"),
        ("Choice D", "C"),
        ("Definitely B", "D"),
        ("Explanation: C", "E"),
        ("the answer is c", None),
        ("As B is wrong", "A"),
    ],
)
def test_first_capital_is_the_upstream_parser_faults_included(reply, letter):
    assert extraction.first_capital(reply) == letter


def test_first_capital_reads_letters_beyond_f_only_when_widened():
    assert extraction.first_capital("(K)") is None
    assert extraction.first_capital("(K)", extraction.widened("ABCDEFGHIJK")) == "K"
    assert extraction.widened("AB") == "ABCDEF"


@few
@given(st.text(max_size=80), st.integers(1, 18))
def test_first_capital_is_one_of_the_letters_and_none_stands_before_it(text, count):
    letters = "ABCDEFGHIJKLMNOPQR"[:count]
    found = extraction.first_capital(text, letters)
    before = text if found is None else text[: text.index(found)]
    assert found is None or found in letters
    assert not set(before) & set(letters)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("So the answer is (B).", "(B)"),
        ("So the answer is (B). ", "(B)"),
        ("The final answer: (C).", "(C)"),
        ("the answer is 42", "42"),
        ("The answer is 3.5.", "3.5"),
        ("So the answer is: (D).", "(D)"),
        ("The answer is (A).\nNo, the answer is (B).\nBye", "(B)"),
        ("The answer is (B). Here is why:\nAna lies.", "(B)"),
        ("The answer is **(B)**.", "(B)"),
        ("the answer is ] ] >.", "] ] >"),
        ("The answer is:\n24", "24"),
        ("answer is .", None),
        ("It is 24.", None),
        ("", None),
    ],
)
def test_answer_is(reply, answer):
    assert extraction.answer_is(reply) == answer


@few
@given(st.text(max_size=60), st.sampled_from(["(B)", "Yes", "-17", "] ] >", "apple fig pear", "1,234"]))
def test_answer_is_depends_on_nothing_before_it(before, answer):
    assert extraction.answer_is(f"{before}\nSo the answer is {answer}.") == answer


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("Not (A) but (B).", "B"),
        ("The answer is 11/08/1928.", "B"),
        ("answer: B", "B"),
        ("answer:B", "B"),
        ("B", "B"),
        ("B.", "B"),
        ("Option B", "B"),
        ("(b)", "B"),
        ("**C**", "C"),
        ("B) because it fits", "B"),
        ("The answer is clear.\n(C)", "C"),
        ("The answer is A because of (B).", "A"),
        ("First (A).\nSo the answer is (A) or (B).", None),
        ("(B) looks right, but the answer is (Z).", None),
        ("(Z)", None),
        ("A dog barks", None),
        ("", None),
    ],
)
def test_robust_letters(reply, letter):
    assert extraction.robust(reply, tuple("ABC"), **DATES) == letter


@pytest.mark.parametrize(
    ("reply", "choices", "word"),
    [
        ("not True is False", BOOLEAN, "False"),
        ("true", BOOLEAN, "True"),
        ("No. Yes.", YES_NO, "Yes"),
        ("YES", YES_NO, "Yes"),
        ("Yes, since there is no end of it", YES_NO, "Yes"),
        ("There is no reason to think so", YES_NO, None),
        ("Yes or no", YES_NO, None),
        ("valid, no: invalid", VALIDITY, "invalid"),
        ("Invalid", VALIDITY, "invalid"),
        ("The argument is not valid", VALIDITY, None),
        ("Jo lies, so Jo says Yes.\nSo the answer is No.", YES_NO, "No"),
        ("implausible", ("yes", "no"), None),
    ],
)
def test_robust_words(reply, choices, word):
    assert extraction.robust(reply, choices) == word


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("The closing sequence is ] ] >.", "] ] >"),
        ("] ] >", "] ] >"),
        ("well-known answer: 24", "24"),
        ("1 + 2 = 3\nThere are 24 of them.", "24"),
        ("3 + 4 = 7", None),
        ("24", "24"),
        ("-7", "-7"),
        ("apple fig o'neil r&d", "apple fig o'neil r&d"),
        ("There are many", None),
        ("", None),
    ],
)
def test_robust_free_answers(reply, answer):
    assert extraction.robust(reply) == answer


@few
@given(st.text(max_size=80), st.sampled_from([tuple("ABCD"), YES_NO, BOOLEAN, VALIDITY]))
def test_robust_gives_a_choice_or_nothing(text, choices):
    assert extraction.robust(text, choices) in (*choices, None)


@few
@given(st.sampled_from([tuple("ABCDEFGHIJKLMNOPQR"), YES_NO, BOOLEAN, VALIDITY]), st.data())
def test_robust_reads_a_bare_choice_and_a_stated_one(choices, data):
    choice = data.draw(st.sampled_from(choices))
    printed = f"({choice})" if len(choice) == 1 else choice
    for reply in (choice, printed, f"{printed}.", f"Steps.\nSo the answer is {printed}."):
        assert extraction.robust(reply, choices) == choice


@pytest.mark.parametrize(
    ("answer", "target"), [("1,234", "1234"), ("[ ] >", "[]>"), ("Apple, fig", "apple fig"), ("24.", "24")]
)
def test_same_answer_ignores_form(answer, target):
    assert extraction.same_answer(answer, target)


@pytest.mark.parametrize(
    ("answer", "target"), [("24", "2"), ("] >", "> ]"), ("fig apple", "apple fig"), ("", "7")]
)
def test_same_answer_keeps_content_apart(answer, target):
    assert not extraction.same_answer(answer, target)


@pytest.mark.realdata
@pytest.mark.skipif(not CODEX.is_dir(), reason="no BBH replies beside the repository")
def test_answer_is_reproduces_the_stored_accuracies_of_real_chains_of_thought():
    files = sorted(CODEX.glob("*.jsonl"))
    assert len(files) == 14
    for path in files:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        right = sum(extraction.answer_is(row["prediction"]) == row["target"] for row in rows)
        stored = json.loads(path.with_suffix(".accuracy.json").read_text(encoding="utf-8"))["accuracy"]
        assert 100 * right / len(rows) == pytest.approx(stored, abs=1e-9), path.name
