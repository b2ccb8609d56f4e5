"""Whether answers agree: one with the target, by rules, or the samples of a query with one another.

Samples vote with the answer they end in, whatever reasons lead to it: self-consistency (arXiv 2203.11171), as
a filter on what is trained on.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

from orca_jax.queries.multiple_choice import options

LONGEST_TARGET = 8  # words of a target that is looked for
_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+|[^\w\s]")
_ANSWER = re.compile(r"\banswer(?:\s+(?:is|would be|choice is|should be)\b\s*:?|\s*:)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_LABEL = re.compile(r"\A\W*(?:\(([A-Za-z])\)|([A-Z]))\W*\Z")
_SAID = re.compile(r"\(([A-Za-z])\)|\b([A-Z])(?=[).:]|\s*\Z)")  # an option's letter
_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}


def agrees(answer: str, target: str, question: str = "") -> bool | None:
    """Whether an answer gives the target; None where that cannot be checked.

    The answer is looked for in what follows its last "answer is", or else in its last and its first sentence.
    There the target must stand, or its option's label or text, and no other option beside it.

    Args:
      question: its options are the target's rivals.
    """
    wanted, listed = _words(target), [_words(option) for option in options(question)]
    if not wanted or len(wanted) > LONGEST_TARGET:
        return None
    if _words(answer) == wanted:
        return True
    if match := _LABEL.match(target):
        label = (match[1] or match[2]).lower()
    else:
        label = chr(ord("a") + listed.index(wanted)) if wanted in listed else ""
    place = ord(label) - ord("a") if label else len(listed)
    option = listed[place] if place < len(listed) else []
    rivals = [words for words in listed if words and words not in (option, wanted)]
    if len(wanted) == 1 and wanted[0] in _OPPOSITES:
        rivals.append([_OPPOSITES[wanted[0]]])
    accepted = [words for words in ([] if match else wanted, option) if words]
    return any(_states(place, label, accepted, rivals) for place in _places(answer))


def final_answer(answer: str, question: str = "") -> str | None:
    """What an answer comes to, the same for answers that say the same; None: nothing that could be compared.

    It is the letter of an option, else yes or no (true or false), else a number, else a few words. It is
    looked for where `agrees` looks for a target; of two sentences no words count, nor the question's numbers.
    """
    listed, places = [_words(option) for option in options(question)], _places(answer)
    alone = len(set(places)) == 1
    asked = set[str]() if alone else _counted(question, ())
    for kind in (_chosen, _decided, _counted):
        for place in places:
            said = kind(place, listed) - asked
            if len(said) == 1:
                return said.pop()
    words = _words(places[0]) if alone else []
    return " ".join(words) if 0 < len(words) <= LONGEST_TARGET else None


def _chosen(place: str, listed: Sequence[list[str]]) -> set[str]:
    """The options that a sentence names, by letter or text."""
    letters = {letter.lower() for match in _SAID.findall(place) for letter in match if letter and listed}
    words = _words(place)
    texts = (chr(ord("a") + at) for at, text in enumerate(listed) if text and _find(words, text) is not None)
    return {f"({letter})" for letter in letters or texts}


def _decided(place: str, listed: object) -> set[str]:
    """The yes or no that a sentence begins or ends with."""
    return _OPPOSITES.keys() & {*_words(place)[:1], *_words(place)[-1:]}


def _counted(place: str, listed: object) -> set[str]:
    return {word for word in _words(place) if word[0].isdecimal()}


def majority(answers: Sequence[str | None]) -> str | None:
    """The answer that more than half of a query's samples give, two at least; None stands for none."""
    given = collections.Counter(answer for answer in answers if answer is not None)
    most, votes = max(given.items(), key=lambda entry: entry[1], default=(None, 0))
    return most if votes > max(1, len(answers) / 2) else None


def _places(answer: str) -> list[str]:
    stated = [match.end() for match in _ANSWER.finditer(answer)]
    if stated:
        return _SENTENCE_END.split(answer[stated[-1] :].strip())[:1]
    sentences = [sentence for sentence in _SENTENCE_END.split(answer.strip()) if sentence.strip()]
    return [sentences[-1], sentences[0]] if sentences else []


def _states(place: str, label: str, accepted: Sequence[list[str]], rivals: Sequence[list[str]]) -> bool:
    if label and (said := {match[1] or match[2] for match in _SAID.finditer(place)}):
        return {letter.lower() for letter in said} == {label}
    words = _words(place)
    for wanted in sorted(accepted, key=len, reverse=True):
        if not wanted[0][0].isalnum():  # brackets alone: ")" is no answer where ") ]" is
            return words == wanted
        start = _find(words, wanted)
        if start is not None:
            rest = [*words[:start], "|", *words[start + len(wanted) :]]
            return not any(_find(rest, rival) is not None for rival in rivals)
    return False


def _find(words: Sequence[str], run: Sequence[str]) -> int | None:
    size = len(run)
    return next((at for at in range(len(words) - size + 1) if words[at : at + size] == run), None)


def _words(text: str) -> list[str]:
    """Lower-case words and numbers (12,000.50 and 12000.5 are one); of a text without any, its brackets."""
    words = []
    for word in _WORD.findall(text.lower()):
        if word[0].isdecimal():
            word = word.replace(",", "")
            word = word.rstrip("0").rstrip(".") if word.count(".") == 1 else word
        words.append(word)
    return [word for word in words if word[0].isalnum()] or [word for word in words if word in "()[]{}<>"]
