"""Reading an answer out of a reply: pure functions, `None` where nothing well-formed is found."""

from __future__ import annotations

import re
from collections.abc import Sequence

PAPER_LETTERS = "ABCDEF"

_ANSWER = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s+[A-Z])|\n")
_DECORATION = "*_`\"' \t"
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?!\w)")
_CLOSING_BRACKETS = re.compile(r"(?:^|\s)((?:[\[\](){}<>]\s*)+)\.?$")
_LOWER_CASE_WORDS = re.compile(r"[a-z][^\sA-Z,.:;?!]*(?:,? [a-z][^\sA-Z,.:;?!]*)*\.?")
_MARKED_LETTER = re.compile(
    r"""\(([A-Za-z])\)                             # (B), (b)
      | \b(?i:option|choice|answer):?\s+([A-Z])\b  # option B
      | (?m:^)\W*([A-Z])[).:](?=\s|$)              # B) or B. at the start of a line
      | \A\W*([A-Za-z])\W*\Z                       # nothing but a letter
    """,
    re.VERBOSE,
)
_TWO_LETTERS = re.compile(r"\W*[A-Z]\)?\s*(?:,|/|\bor\b|\band\b)+\s*\(?[A-Z]\b")
_LEADING_LETTER = re.compile(r"\W*([A-Z])\b")


def first_capital(text: str, letters: str = PAPER_LETTERS) -> str | None:
    """The first character of `text` that is one of `letters`: the paper's parser (section 4.2.2).

    With the default this is AGIEval's own, faults included: a reply beginning "As" scores as A,
    "Definitely B" as D.
    """
    return next((character for character in text if character in letters), None)


def widened(letters: str) -> str:
    """The paper's six letters, or more where a task's options go beyond F (BBH: up to R)."""
    return letters if len(letters) > len(PAPER_LETTERS) else PAPER_LETTERS


def answer_is(text: str) -> str | None:
    """What follows the last "answer is" (or "answer:") up to the end of its sentence or line.

    A sentence ends at a full stop before a capital, or with the line; case of "answer is" is free.
    White space, a final full stop and decoration (asterisks, quotes, backticks) around the answer are
    dropped; what is left empty is `None`.
    """
    statement = _last_statement(text)
    return None if statement is None else _undecorated(_SENTENCE_END.split(statement, maxsplit=1)[0]) or None


def _last_statement(text: str) -> str | None:
    """All that follows the last "answer is"."""
    ends = [match.end() for match in _ANSWER.finditer(text)]
    return text[ends[-1] :].lstrip() if ends else None


def _undecorated(text: str) -> str:
    stripped = text.strip(_DECORATION)
    return stripped.removesuffix(".").strip(_DECORATION)


def robust(text: str, choices: Sequence[str] = (), *, options: Sequence[str] = ()) -> str | None:
    """The last well-formed answer in `text`; with `choices`, always one of them.

    If the reply says "answer is", nothing before the last such words is looked at: first the sentence
    they are in (`answer_is`), then what follows it. Otherwise the whole reply is.
      - Letters: "(B)" and "(b)", "option B", a line beginning "B)" or "B.", a reply that is nothing but
        the letter; in the "answer is" sentence also a leading "B" and the text of an option. That
        sentence is no answer if it names two letters as in "(A) or (B)".
      - Words (Yes/No, True/False, valid/invalid): the last sentence that ends with one of them, not
        after "not" or "or", or that begins with one followed by punctuation; case is free.
      - Free answers: what follows "answer is"; else a reply that is nothing but lower-case words; else
        the brackets that close the last line, or the only number in it.

    Args:
      text: the reply.
      choices: labels, all single capitals or all words; empty for a free answer.
      options: the options' texts, in the order of `choices`.
    """
    stated, statement = answer_is(text), _last_statement(text)
    if not choices:
        return stated or _unannounced(text)
    passage = text if statement is None else statement
    if not all(len(choice) == 1 for choice in choices):
        return _last_word(stated or "", choices) or _last_word(passage, choices)
    if stated and _TWO_LETTERS.match(stated):
        return None
    return _stated_letter(stated or "", choices, options) or _last_letter(passage, choices)


def _unannounced(text: str) -> str | None:
    reply = text.strip()
    if _LOWER_CASE_WORDS.fullmatch(reply):
        return _undecorated(reply)
    last_line = reply.rpartition("\n")[2]
    if brackets := _CLOSING_BRACKETS.search(last_line):
        return brackets[1].strip()
    numbers = _NUMBER.findall(last_line)
    return numbers[0].rstrip(",") if len(numbers) == 1 else None


def _stated_letter(stated: str, choices: Sequence[str], options: Sequence[str]) -> str | None:
    by_text = {_plain(option): choice for choice, option in zip(choices, options)}
    if letter := by_text.get(_plain(stated)):
        return letter
    leading = _LEADING_LETTER.match(stated)
    if leading and leading[1] in choices:
        return leading[1]
    return _last_letter(stated, choices)


def _last_letter(text: str, choices: Sequence[str]) -> str | None:
    found = [match[match.lastindex or 0].upper() for match in _MARKED_LETTER.finditer(text)]
    return next((letter for letter in reversed(found) if letter in choices), None)


def _last_word(text: str, choices: Sequence[str]) -> str | None:
    label = "|".join(map(re.escape, choices))
    ending = re.compile(rf"(?:.*\W)?(?<!not )(?<!or )({label})\W*", re.IGNORECASE)
    beginning = re.compile(rf"\W*({label})[,:;*].*", re.IGNORECASE)
    by_case = {choice.casefold(): choice for choice in choices}
    for sentence in reversed(re.split(r"[.!?\n]", text)):
        if match := ending.fullmatch(sentence) or beginning.fullmatch(sentence):
            return by_case[match[1].casefold()]
    return None


def same_answer(answer: str, target: str) -> bool:
    """Equality of free answers: case, spacing, commas, quotes and a final full stop do not matter."""
    return _plain(answer) == _plain(target)


def _plain(text: str) -> str:
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.casefold())
    text = re.sub(r"[,\"`*$]", " ", text).strip().removesuffix(".")
    if not re.search(r"\w", text):
        return re.sub(r"\s", "", text)
    return " ".join(text.split())
