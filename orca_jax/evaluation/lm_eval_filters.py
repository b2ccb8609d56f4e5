"""How lm-eval (lm-evaluation-harness) reads a reply to a BBH question: the same answers, item by item.

Two filters a task, faults included, so that its numbers can be compared with: `flexible`, which its group
means use, and `strict`. A reply that neither reads is `None` here, "[invalid]" there. Facts of version 3.0
of its tasks `bbh_zeroshot` and `bbh_cot_zeroshot`.
"""

from __future__ import annotations

import re
import unicodedata

FIRST, LAST = 0, -1  # the match that counts: zero-shot tasks take the first, step-by-step ones the last

_WORDS = {
    "boolean_expressions": r"\b(True|False)\b",
    "causal_judgement": r"\b(Yes|No|yes|no)\b",
    "navigate": r"\b(Yes|No|yes|no)\b",
    "formal_fallacies": r"\b(valid|invalid)\b",
    "dyck_languages": r'(?<= )([" \[\(<{}>\)\]]+)|([" \[\(<{}>\)\]]+)',
}
# Of the lower-cased reply: what says no, and what says yes.
_SAYS_NO_OR_YES = {
    "sports_understanding": r"\b(no|not plausible)\b|\b(yes|plausible)\b",
    "web_of_lies": r"\b(no|does not tell the truth|is not telling the truth)\b"
    r"|\b(yes|tells the truth|is telling the truth)\b",
}
_NUMBER_TASKS = ("multistep_arithmetic_two", "object_counting")
_STRICT = re.compile(
    "|".join(rf"(?<={start})(.*)(?=.)" for start in ("The answer is ", "the answer is ", "The answer: "))
    + r"|(?<=The final answer: )(.*)(?=.)"
)
_OPTION = re.compile(r"\([A-Z]\)([^\n^(]*)")
_LETTER = r"(\([A-Z]\))"
_DELETED = re.compile(r"[,\n\\\"]")

_COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {word: number for number, word in enumerate(_COUNTED.split())} | {
    word: 10 * number for number, word in enumerate(_TENS.split(), 2)
}
_VALUES["hundred"] = 100
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NUMBER_WORDS = (*_VALUES, *_SCALES)
_STEMS = "(?:twen|thir|for|fif|six|seven|nine)"
_OTHERS = "ten|eleven|twelve|fourteen|hundred|thousand|(?:m|b|tr)illion"
_SMALL = "zero|one|two|three|four|five"
# The last word needs its "teen" or "ty": bare six, seven, eight and nine are not recognised there.
_LAST_NUMBER_WORD = f"(?:{_SMALL}|{_STEMS}(?:teen|ty)|eight(?:een|y)|{_OTHERS})"
_NEXT_NUMBER_WORD = rf"(?:{_SMALL}|{_STEMS}(?:|teen|ty)|eight(?:een|y)|{_OTHERS}|[^\S\r\n]|,|and|&)"
_FIRST_NUMBER_WORD = f"(?:{_SMALL}|{_STEMS}(?:teen|ty)|eight(?:|een|y)|{_OTHERS})"
_NUMBER_WORDS = re.compile(f"((?:{_FIRST_NUMBER_WORD}{_NEXT_NUMBER_WORD}+)?{_LAST_NUMBER_WORD})")


def flexible(task: str, reply: str, question: str, *, place: int) -> str | None:
    """What filter `flexible-extract` finds; the empty string where it matched white space alone.

    Args:
      task: a BBH task's name.
      question: the file's `input`, for its options or its list of words.
      place: `FIRST` or `LAST`.
    """
    if task in _WORDS:
        return _hit(_WORDS[task], reply, place)
    if task in _SAYS_NO_OR_YES:
        said = list(re.finditer(_SAYS_NO_OR_YES[task], reply.lower()))
        return ("no" if said[place].lastindex == 1 else "yes") if said else None
    if task in _NUMBER_TASKS:
        return _hit(r"([-0-9]+)", reply, place) or _spelled_number(reply, place)
    return _sorted_words(reply, question) if task == "word_sorting" else _letter(reply, question, place)


def strict(reply: str, *, step_by_step: bool) -> str | None:
    """What filter `strict-match` finds: the whole reply, or step by step what follows "the answer is".

    The pattern always costs the last character of the line, which is meant to be the full stop.
    """
    return (_hit(_STRICT, reply, FIRST) or None) if step_by_step else reply


def exact_match(answer: str, target: str) -> bool:
    """lm-eval's comparison: without a final full stop, commas, line breaks, backslashes, quotes and case."""
    return _bare(answer) == _bare(target)


def _bare(text: str) -> str:
    return _DELETED.sub("", re.sub(r"\.$", "", text)).lower()


def _hit(pattern: str | re.Pattern[str], text: str, place: int) -> str | None:
    """The group that matched, white space around it taken off; None without a match."""
    found = [next(filter(None, match.groups()), "") for match in re.finditer(pattern, text)]
    return found[place].strip() if found else None


def _letter(reply: str, question: str, place: int) -> str | None:
    """A letter in brackets; else the text of an option; else a letter after a colon."""
    if shown := _hit(_LETTER, reply, place):
        return shown
    options = [_plain(option.strip()) for option in _OPTION.findall(question)]
    if not options:
        return None
    letters = [chr(ord("A") + number) for number in range(len(options))]
    if said := _hit(f"({'|'.join(map(re.escape, options))})", _plain(reply), place):
        return {option: f"({letter})" for option, letter in zip(options, letters)}.get(said, said)
    bare = _hit(rf":\s*({'|'.join(letters)})", reply, place)
    return f"({bare})" if bare else None


def _plain(text: str) -> str:
    """Lower case without punctuation."""
    return "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))


def _sorted_words(reply: str, question: str) -> str:
    """The list's words as the reply has them, each at its last place."""
    words = question.rpartition("List:")[2].split()
    try:
        found = re.findall("|".join(rf"\b{word}\b" for word in words), reply)
    except re.error:  # lm-eval does not escape the words, and fails here
        found = re.findall("|".join(rf"\b{re.escape(word)}\b" for word in words), reply)
    return " ".join(reversed(dict.fromkeys(reversed(found))))


def _spelled_number(reply: str, place: int) -> str | None:
    spelled = _hit(_NUMBER_WORDS, reply.lower(), place)
    return str(spelled_value(spelled.split())) if spelled else None


def spelled_value(words: list[str]) -> int:
    """As the package word2number has it: words that are no number, one before a comma say, do not count."""
    total, part = 0, list[int]()
    for word in words:
        if word in _SCALES:
            total, part = total + max(_joined(part), 1) * _SCALES[word], []
        elif word in _VALUES:
            part.append(_VALUES[word])
    return total + _joined(part)


def _joined(numbers: list[int]) -> int:
    """Below 1,000: "two hundred five" is 2 * 100 + 5, and so are any three or four; of more, the first."""
    if len(numbers) in (3, 4) or (len(numbers) == 2 and 100 in numbers):
        return numbers[0] * numbers[1] + sum(numbers[2:])
    return sum(numbers if len(numbers) == 2 else numbers[:1])
