import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.evaluation import extraction
from orca_jax.evaluation.benchmarks import bbh

CODEX = Path(__file__).resolve().parents[2] / "../shared/data/bbh_codex/cot"
YES_NO, BOOLEAN, VALIDITY = ("Yes", "No"), ("True", "False"), ("valid", "invalid")
DATES = {"options": ("12/08/1928", "11/08/1928", "10/08/1928")}
few = settings(max_examples=30, deadline=None)


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


def test_first_capital_reads_letters_beyond_f_only_if_a_task_has_them():
    assert extraction.first_capital("(K)") is None
    assert extraction.first_capital("(K)", bbh.TASKS["geometric_shapes"].letters) == "K"
    assert bbh.TASKS["snarks"].letters == "ABCDEF"


@few
@given(st.text("ABCFKRabk(.) \n", max_size=20), st.integers(1, 18))
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
        ("Going back gives 11/08/1928.\n\nB. 11/08/1928\n\nThe answer isn't (A).", "B"),
        ("The answer isn't A, it is B.", "B"),
        ("(A) fits. No wait, the answer is not (A)", None),
        ("The answer is neither (A) nor (B).", None),
        ("The answer is both (A) and (B).", None),
        ("It is A or B", None),
        ("(A) and (B) are wrong, so C.", "C"),
        ("(B) is right. (A) is not.", "B"),
        ("Maybe (A)? No, the answer is not (A).", None),
        ("The answer is (A). Wait, no, it's (B).", "B"),
        ("The answer is (B). I hope this answer is helpful!", "B"),
        ("Is the answer (A)? No: (B), because (A) is late", "B"),
        ("The correct option is **B) 11/08/1928**", "B"),
        ("<think>\nThe answer is (A).\n</think>\n\nB", "B"),
        ("<think>The answer is (A)", None),
        ("The answer is I think a dog", None),
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
        ("The argument is not valid", VALIDITY, "invalid"),
        ("This is not a valid argument.", VALIDITY, "invalid"),
        ("neither valid nor invalid", VALIDITY, None),
        ("The answer is not False, but True.", BOOLEAN, "True"),
        ("The answer is True and False = False", BOOLEAN, "False"),
        ("[No]\n1. It has an even digit. If yes, it is not prime", YES_NO, "No"),
        ("Yes and no.", YES_NO, None),
        ("The answer is there is no way to know.", YES_NO, None),
        ("I say Yes. The answer cannot be determined.", YES_NO, None),
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


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("48 / 2 = 24, so 48 + 24 = 72 clips in all.", "72"),
        ("The answer is 72, since 48 + 24 = 72 and 48 / 2 = 24.", "72"),
        ("The answer is 72 (48 in April).\n\nAnything else? I have 2 more ideas.", "72"),
        ("Half of 48 is 24.\n#### 1,072", "1072"),
        ("She sold 72 clips (48 in April and 24 in May).", "72"),
        ("So she sold **72** clips in 2 months.", "72"),
        ("He rests on the 3rd day of a 5-day week and earns 72", "72"),
        ("The answer is 70. Wait, no: it is 72.", "72"),
        ("The answer is not 70 but 72.", "72"),
        ("The answer is 1\u202f234.50 kg", "1234.5"),
        ("The answer is minus 3.", "-3"),
        ("The answer is - 3 degrees.", "-3"),
        ("There are seventy-two vegetables.", "72"),
        ("Answer: She sold 48 / 2 = 24 in May.\nSo she sold 48 + 24 = 72 in all.", "72"),
        (r"\[ \frac{144}{2} = \boxed{72\text{ clips}} \]", "72"),
        ("The answer is 3/4.", "3/4"),
        ("So 1 + 1 = 2.\nSo the answer is We", None),
        ("The answer is 70 or 72.", None),
        ("48 in April. The answer is unknown.", None),
        ("<think>48 + 24 = 72", None),
    ],
)
def test_robust_numbers(reply, number):
    assert extraction.robust(reply, form="number") == number


LETTERS = {"choices": tuple("ABCDEF")}
WRAPPED = [
    ("B", LETTERS, "B"),
    ("(B)", LETTERS, "B"),
    *((word, {"choices": choices}, word) for choices in (YES_NO, BOOLEAN, VALIDITY) for word in choices),
    *(
        (text, {"form": "number"}, number)
        for text, number in [("72", "72"), ("$1,234.50", "1234.5"), ("−3", "-3")]
    ),
    ("] ] >", {"form": "brackets"}, "] ] >"),
    ("apple fig pear", {}, "apple fig pear"),
]
WRAPPERS = ["{}.", "**{}**", "`{}`", '"{}"', "${}$", r"\({}\)", r"\text{{{}}}", r"\mathbf{{{}}}"]
FRAMES = [
    " {}\n",
    "So the answer is {}<|im_end|>",
    "First (A), 5 or maybe yes.\n\n**Answer:** {}",
    "### Final answer\n{}",
    r"We find \boxed{{{}}}.",
    "True or 6?\n<answer>{}</answer>",
    "<think>\nMaybe the answer is (C) or 7 or no?\n</think>\n{}",
]


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(WRAPPED),
    st.lists(st.sampled_from(WRAPPERS), max_size=2, unique=True),
    st.sampled_from(FRAMES),
)
def test_what_stands_around_an_answer_does_not_change_it(wrapped, wrappers, frame):
    text, kind, answer = wrapped
    for wrapper in [*wrappers, frame]:
        text = wrapper.format(text)
    assert extraction.robust(text, **kind) == answer


PIECES = "(A) (B) C I not n't or and neither answer is : = 72 -3 3/4 , . ? + 1e5 yes No valid wait"
SYNTAX = [
    "\n",
    "<think>",
    "</think>",
    "\\boxed{",
    "}",
    "**",
    "$",
    "<answer>",
    "####",
    "<|im_end|>",
    "\\frac{",
    "{",
    "```",
    "so ",
    "~~",
]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES.split() + SYNTAX) | st.text(max_size=8), max_size=14),
    st.sampled_from(
        [LETTERS, *({"choices": c} for c in (tuple("0123"), YES_NO, VALIDITY)), {"form": "number"}]
    ),
)
def test_an_answer_is_a_choice_or_a_number_and_read_as_itself(pieces, kind):
    answer = extraction.robust(" ".join(pieces), **kind)
    if answer is not None:
        assert answer in kind["choices"] if "choices" in kind else extraction.form(answer) == "number"
        assert extraction.robust(answer, **kind) == answer
    for form in ("text", "brackets"):
        assert extraction.robust(" ".join(pieces), form=form) != ""


@few
@given(st.sampled_from([tuple("ABCDEFGHIJKLMNOPQR"), YES_NO, BOOLEAN, VALIDITY]), st.data())
def test_robust_reads_a_bare_choice_and_a_stated_one(choices, data):
    choice = data.draw(st.sampled_from(choices))
    printed = f"({choice})" if len(choice) == 1 else choice
    for reply in (choice, printed, f"{printed}.", f"Steps.\nSo the answer is {printed}."):
        assert extraction.robust(reply, choices) == choice


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("1,234", "1234"),
        ("0.75", "3/4"),
        ("$18.00", "18"),
        ("[ ] >", "[]>"),
        ("Apple, fig", "apple fig"),
        ("24.", "24"),
    ],
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
