"""Parses the answer of a reply: pure functions that return None where no well-formed answer is found."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Literal, NamedTuple

PAPER_LETTERS = "ABCDEF"
Form = Literal["text", "number", "brackets"]

_ANSWER = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s+[A-Z])|\n")
_DECORATION = "*_`\"' \t"


def first_capital(text: str, letters: str = PAPER_LETTERS) -> str | None:
    """The first character of `text` that is one of `letters`: the paper's parser (section 4.2.2).

    With the default this is AGIEval's parser, with its faults: "As ..." scores as A, "Definitely B" as D.
    """
    return next((character for character in text if character in letters), None)


def answer_is(text: str) -> str | None:
    """What follows the last "answer is" (or "answer:"), up to a full stop before a capital or the line's end.

    Case is free; white space, a final full stop and decoration (asterisks, quotes, backticks) are dropped.
    """
    ends = [match.end() for match in _ANSWER.finditer(text)]
    statement = text[ends[-1] :].lstrip() if ends else ""
    return _undecorated(_SENTENCE_END.split(statement, maxsplit=1)[0]) or None


def _undecorated(text: str) -> str:
    stripped = text.strip(_DECORATION)
    return stripped.removesuffix(".").strip(_DECORATION)


def form(target: str) -> Form:
    """The form of free answers like `target`; replies are parsed by form, never by the target's value."""
    if _value(target) is not None:
        return "number"
    return "text" if re.search(r"\w", target) else "brackets"


def robust(
    text: str,
    choices: Sequence[str] = (),
    *,
    options: Sequence[str] = (),
    synonyms: Mapping[str, str] = MappingProxyType({}),
    form: Form = "text",
    finished: bool = True,
) -> str | None:
    """The last well-formed answer in `text`; with `choices`, always one of them.

    Thinking (`<think>`), Markdown, LaTeX and currencies are taken out first. An answer is announced by
    "answer is" and the like, `\\boxed{}`, `<answer>` or "####". The last announcement with an answer decides:
    its sentence, else what follows it. Without one the whole reply is read from its end, unless it says
    "the answer is" and then nothing well-formed. A denied option ("not (A)", "(A) is wrong") is no
    answer, nor is an open choice ("(A) or (B)", "neither").
      - Letters and digits: "(B)", "[B]", "option B", "so B", a line beginning "B)" or "B.", a line that is
        nothing but the letter; where it is announced also a bare "B", and the text of an option.
      - Words (Yes/No, True/False, valid/invalid) and synonyms that end a sentence or, at its beginning or
        where it is announced, stand before punctuation; case is free. "Not" and one of two is the other.
      - Numbers: the first that is announced, behind "=" if there is one; else the last in the last sentence
        with one. Operands and ordinals are none, units do not matter. Without commas and trailing zeros.
      - Brackets and other texts: what is announced; else a reply or last line that is nothing else.

    Args:
      choices: labels, all single characters or all words; empty for a free answer, which has a `form`.
      options: the options' texts, in the order of `choices`.
      synonyms: other words for a label.
      finished: False of a reply that was cut off; only an announced answer counts then.
    """
    reader: _Letters | _Words | _Numbers | _Texts
    if not choices and form == "number":
        text, reader = _BOLD_NUMBER.sub(r"= \1", text), _Numbers()
    elif not choices:
        reader = _Texts(form)
    elif all(len(choice) == 1 for choice in choices):
        text, reader = _BOLD_LETTER.sub(r"(\1)", text), _Letters(choices, options)
    else:
        reader = _Words(choices, synonyms)
    text = text.translate(_CHARACTERS)
    for pattern, replacement in _COMPILED:  # leaves out thinking, special tokens, Markdown, LaTeX, currencies
        text = pattern.sub(replacement, text)
    return _read(text, reader, finished=finished) or None


_BBEH_PREFIXES = ("The answer is:", "The final answer is ", "The final answer is: ", "The answer is ")


def bbeh(text: str) -> str:
    """The answer as BBEH's published evaluator reads it; of a reply that announces none, its first line."""
    answer = text.strip()
    for prefix in _BBEH_PREFIXES:
        if prefix in answer:
            answer = answer.rpartition(prefix)[2].strip()
    answer = answer.removesuffix(".")
    if answer.startswith("$") and answer.endswith("$"):
        answer = answer[1:-1]
    for mark in ("boxed{", "text{", "texttt{"):
        if mark in answer and answer.endswith("}"):
            answer = answer[:-1].split(mark)[1]
    return answer.lower().replace(", ", ",").replace("**", "").split("\n")[0].removesuffix(".")


def bbeh_alike(answer: str, target: str) -> bool:
    """Whether BBEH's published evaluator takes what `bbeh` has read for the target."""
    target = target.strip().lower().replace(", ", ",")
    for one, other in ((answer, target), (target, answer)):
        if len(one) == 3 and one[0] == "(" and one[2] == ")":
            return one == other or one[1] == other
    try:
        if float(answer) == float(target):
            return True
    except ValueError:
        pass
    plain = answer.replace("'", "") == target.replace("'", "")
    return plain or answer in (f"[{target}]", f"{target}?") or target == f"[{answer}]"


_THINKING = "think(?:ing)?|thought|reasoning|scratchpad"
_END_OF_TURN = r"<\|(?:im_end|eot_id|end|endoftext|end_of_text)\|>|</s>|<end_of_turn>"
_LATEX_FONT = r"\\(?:text|math|mbox|operatorname)[a-z]*"
_BOLD_LETTER = re.compile(r"\*\*\(?([A-Za-z])[).:]*\*\*")
_BOLD_NUMBER = re.compile(r"\*\*(?=[^\w\s*]*\d)(?!\d+[.):]\s)([^*\n]+)\*\*")
_CHARACTERS = str.maketrans(
    "".join(map(chr, range(0xFF01, 0xFF5F)))  # full width
    + "\u2010\u2011\u2212\ufe63\u00a0\u2007\u2008\u2009\u200a\u202f\u3000\u2019",
    "".join(map(chr, range(0x21, 0x7F))) + "----       '",
    "\u200b\u2060\ufeff",
)


def _announced(match: re.Match[str]) -> str:
    return f"\nanswer: {' '.join(match[1].split())}\n"


_REWRITES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (  # in this order
    (rf"(?is)<({_THINKING})>.*?(?:</\1>|\Z)", " "),  # thinking that does not end holds no answer
    (rf"(?is)\A.*</(?:{_THINKING})>", ""),
    (rf"(?s)(?<=\S)\s*(?:{_END_OF_TURN}).*", ""),
    (r"<\|[^|<>\n]*\|>", " "),
    (r"(?is)<answer>(.*?)(?:</answer>|\Z)", _announced),
    *[(rf"{_LATEX_FONT}\s*\{{([^{{}}]*)\}}", r"\1")] * 2,  # one may stand in another
    (rf"(?:{_LATEX_FONT}|\\(?:left|right|displaystyle))\b ?", ""),
    (r"\{,\}|(?<=\d)\\[,!](?=\d{3})", ","),
    (r"\\[,!;: ]", " "),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2"),
    (r"\\f?box(?:ed)?\s*\{((?:\\.|[^{}\\]|\{(?:\\.|[^{}\\]|\{[^{}]*\})*\})*)\}", _announced),
    (r"\\(?:times|cdot)\b", "*"),
    (r"\\[()\[\]]", " "),
    (r"\\([$%#&_{}])", r"\1"),
    (r"~~.*?~~|`+|(?<![\w)])\*{2,}|\*{2,}(?![\w(])|__+", ""),
    (r"(?<![\w*])[*_](\S[^*_\n]*?)[*_](?![\w*])", r"\1"),
    (r"(?m)^[ \t]*####\s*(?=\S*\d)(?!\d+[.):]\s)", "answer: "),
    (r"(?m)^[ \t]*#{1,6}\s+", ""),
    (r"(?<=[A-Za-z])\$", " "),
    (r"[$€£¥]", ""),
    (r"(?<!\S)\u2013(?=[.\d])|\b(?:[Mm]inus|[Nn]egative) (?=\d)", "-"),
    (r"(?i)(\bis|[:=])[ \t]*- (?=\d)", r"\1 -"),
)
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _REWRITES]


_NO_ANSWER = ""  # the reply states none or several; None: it states nothing
_ANNOUNCED = re.compile(
    r"""\b(?:answer|(?:correct|right|best)\s+(?:option|choice))\b
          (?:\s+(?:to|in|for|here|of)\b[^.,:;?!\n]{0,60}?)?
          (?: \s+(?:is|are|was|would\ be|should\ be|must\ be)\b
              (?!\s+(?:helpful|useful|clear|correct|right)\b)\s*:?
            | \s*[:=] | \s+[-\u2013\u2014]\s
            | \s+(?=(?:isn't|can't|cannot)\b) | [^\S\n]*(?=\n) )
      | \bans\s*[:=]
      | (?P<correction>\b(?:wait|correction|scratch\ that|i\ mean)\s*[,.:;!\u2013\u2014-])
    """,
    re.IGNORECASE | re.VERBOSE,
)
_IS = re.compile(r"\b(?:is|are|was|be)\b")
_STATEMENT_END = re.compile(r"[.!?](?=\s+[A-Z(])|\n")
_ABSTAINS = re.compile(
    r"\b(?:neither|none|unknown|unclear|undetermined|not (?:enough|given|known|listed)"
    r"|(?:can't|cannot|impossible to) (?:be )?(?:determin|know|sa[iy]|t[eo]l|answer)\w*)\b",
    re.IGNORECASE,
)
_DENIED_BEFORE = re.compile(
    r"""(?:\b(?:not|never|neither|nor|cannot|none\ of|without|except|rather\ than|instead\ of
           |rul\w+\ out|eliminat\w+|exclud\w+|reject\w*)|n't)
        (?:[\s(\["'-]+(?!(?:is|are|was|were|equals|but|so|since|because)\b)[\w/']+[)\]"']*){0,3}
        [\s(\["'-]*\Z
    """,
    re.IGNORECASE | re.VERBOSE,
)
_DENIED_AFTER = re.compile(
    r"""[)\]]*(?:,?\s+(?:and\s+)?\(?[A-Z]\b\)?){0,6}(?:\s+[^\sa-z]\S*)?\s+(?:both\s+)?
        (?:(?:is|are|was|were)(?:n't\b|\ not\b|\ (?:\w+ly\ |also\ |both\ )?
            (?:wrong|incorrect|false|impossible|(?:ruled\ )?out|eliminated|excluded)\b)
          |can(?:not|'t)\b|do(?:es)?(?:n't|\ not)\b|won't\b)
    """,
    re.VERBOSE,
)
_JOINED = re.compile(
    r"(?:[^a-z.;:!?\n]{0,30}\b(?i:or|and|nor)\b|[\W_]*[/,&])[\W_]*"
    r"(?i:(?:or|and|the|option|choice|answer|maybe|possibly|even|also)\W+)*"
)
_JOINED_NUMBERS = re.compile(r"[\s,]*\bor\b\W*(?:maybe\W+|even\W+)?")


class _Mention(NamedTuple):
    """A possible answer in a text; `value` is None if it is none of the choices."""

    start: int
    end: int
    value: str | None


class _Parsed(NamedTuple):
    """The mentions that are meant, those that are denied, and whether some are left open."""

    meant: list[_Mention]
    denied: list[_Mention]
    is_open: bool


def _parse_mentions(text: str, mentions: Iterable[_Mention], joined: re.Pattern[str] = _JOINED) -> _Parsed:
    meant: list[_Mention] = []
    denied: list[_Mention] = []
    for one in mentions:
        before = _DENIED_BEFORE.search(text, max(0, one.start - 80), one.start)
        (denied if before or _DENIED_AFTER.match(text, one.end) else meant).append(one)
    either: set[_Mention] = set()
    for one, other in itertools.pairwise(meant):
        if one.value != other.value and joined.fullmatch(text, one.end, other.start):
            either |= {one, other}
    return _Parsed([one for one in meant if one not in either], denied, bool(either))


def _read(text: str, reader: _Letters | _Words | _Numbers | _Texts, *, finished: bool) -> str | None:
    """Readers give an answer, `_NO_ANSWER` or None, `stated` behind an announcement or at a text's end."""
    corrects = not isinstance(reader, _Texts)
    announcements = [one for one in _ANNOUNCED.finditer(text) if corrects or not one["correction"]]
    reads_all, end = finished, len(text)
    for announcement in reversed(announcements):
        statement = text[announcement.end() : end].lstrip()
        end = announcement.start()
        sentence = _STATEMENT_END.split(statement, maxsplit=1)[0]
        rest = statement[len(sentence) :]
        if rest.startswith("?") or sentence.endswith("?"):
            continue
        answer = reader.stated(sentence)
        says_is = bool(_IS.search(announcement[0]))
        if finished and not says_is and reader.stated(" ".join(sentence.split()[:2])) is None:
            answer = reader.unannounced(statement) or answer  # "Answer: Half of 48 is 24. So ..."
        if answer is None and _ABSTAINS.search(sentence):
            return None
        if answer is None and finished:
            answer = reader.unannounced(rest)
        if answer is not None:
            return answer
        reads_all &= not says_is or sentence.startswith("not ")  # what is garbled is not made up for
    return reader.unannounced(text) if reads_all else None


class _Letters:
    def __init__(self, choices: Sequence[str], options: Sequence[str]) -> None:
        self._choices = choices
        self._by_text = {_plain(option): choice for choice, option in zip(choices, options)}
        any_case, capital, line = (
            ("A-Za-z", "A-Z", "(?m:^)") if choices[0].isalpha() else ("0-9", "0-9", r"\A")
        )
        marked = rf"""\(([{any_case}])\) | \[([{any_case}])\]
          | \b(?i:option|choice|answer):?\s+([{capital}])\b
          | \b(?i:so|therefore|thus|hence|choose|pick|with|it's|it\ is),?\s+([{capital}])(?=[.!]?\s*(?m:$))
          | (?<![\w'])([{capital}])\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b
          | {line}[^\w\n]*([{capital}])[).:](?=\s|$)
          | (?m:^)[^\w\n]*([{capital}])[^\w\n]*(?m:$)
          | \A\W*([{any_case}])\W*\Z"""
        # "A dog" and "I think" hold no letter.
        bare = rf"""(?![AI]\s+(?!(?:because|since|as|or|and|is|which|but|not|for|due)\b)[a-z])
          ([{capital}])\b(?!['.-]\w)"""
        self._marked = re.compile(marked, re.VERBOSE)
        self._leading = re.compile(rf"\A\W*{bare} | {marked}", re.VERBOSE)
        self._any = re.compile(rf"\A\W*{bare} | {marked} | (?<![\w'.-]){bare}", re.VERBOSE)

    def _mentions(self, pattern: re.Pattern[str], text: str) -> list[_Mention]:
        found = []
        for match in pattern.finditer(text):
            group = match.lastindex or 0
            letter = match[group].upper()
            found.append(_Mention(*match.span(group), letter if letter in self._choices else None))
        return found

    def stated(self, sentence: str) -> str | None:
        if letter := self._by_text.get(_plain(sentence)):
            return letter
        parsed = _parse_mentions(sentence, self._mentions(self._any, sentence))
        first = {one.start for one in self._mentions(self._leading, sentence)}
        for one in sorted(parsed.meant, key=lambda one: one.start not in first):
            return one.value or _NO_ANSWER
        if parsed.is_open:
            return _NO_ANSWER
        begun = [text for text in self._by_text if re.match(rf"{re.escape(text)}(?!\w)", _plain(sentence))]
        return self._by_text.get(max(begun, key=len, default=""))

    def unannounced(self, passage: str) -> str | None:
        passage = re.sub(r"(?<=[A-Z)]),? (?:because|since|as) [^.;\n]*", "", passage)
        parsed = _parse_mentions(passage, [one for one in self._mentions(self._marked, passage) if one.value])
        retracted = {one.value: one.start for one in parsed.denied}
        if meant := [one for one in parsed.meant if one.start > retracted.get(one.value, -1)]:
            return meant[-1].value
        if parsed.is_open:
            return _NO_ANSWER
        if not parsed.denied and self._leading.match(passage):
            return self.stated(_STATEMENT_END.split(passage, maxsplit=1)[0])
        return self._by_text.get(_plain(passage.strip().rpartition("\n")[2]))


class _Words:
    # What may follow a label that is an answer: "no way" holds none.
    _END = r"(?:\s+(?:argument|sentence|statement))?\W*\Z|,?\s+(?:because|since|as)\b"
    _AFTER = re.compile(_END)
    _AFTER_STATED = re.compile(
        rf"{_END}|\s*[^\w\s'\"-]|\s+(?:-\s|(?:which|he|she|it|they|this|that|we|you)\b)"
    )

    def __init__(self, choices: Sequence[str], synonyms: Mapping[str, str]) -> None:
        self._choices = choices
        by_case = {choice.casefold(): choice for choice in choices}
        others = {text: by_case.get(label.casefold()) for text, label in synonyms.items()}
        self._labels = {text.casefold(): label for text, label in (others | by_case).items() if label}
        longest_first = sorted(map(re.escape, self._labels), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<![\w-])({'|'.join(longest_first)})(?![\w-])", re.IGNORECASE)

    def unannounced(self, passage: str) -> str | None:
        sentences = reversed(re.split(r"[.!?\n]", passage))
        return next((word for one in sentences if (word := self.stated(one, stated=False)) is not None), None)

    def stated(self, sentence: str, *, stated: bool = True) -> str | None:
        def usable(one: _Mention) -> bool:
            starts = stated or re.fullmatch(r"\W*|.*\[", sentence[: one.start], re.DOTALL)
            return bool((self._AFTER_STATED if starts else self._AFTER).match(sentence, one.end))

        found = [_Mention(*m.span(), self._labels[m[0].casefold()]) for m in self._pattern.finditer(sentence)]
        parsed = _parse_mentions(sentence, found)
        if meant := [one.value for one in parsed.meant if usable(one)]:
            return meant[0 if stated else -1]
        denied = {one.value for one in parsed.denied}
        others = [choice for choice in self._choices if choice not in denied]
        if len(others) == 1 and not parsed.is_open and any(map(usable, parsed.denied)):
            return others[0]
        return _NO_ANSWER if stated and (parsed.is_open or not others) else None


# Thousands are set apart by commas, spaces or apostrophes; "144/2 = 72" holds no fraction.
_UNSIGNED = (
    r"(?>\d+/0*[1-9]\d*(?!\s*[-+*/\u00d7\u00f7=^\d])|(?:\d{1,3}(?:[,' ]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?>(?:[eE][-+]?\d{1,2}(?!\w))?)"
)
_NUMBER = re.compile(rf"(?<![\w.])(?<!\d[:,])(?:(?<![\w)])-)?{_UNSIGNED}(?!:?\d|(?:st|nd|rd|th)\b|-[A-Za-z])")
_OPERATOR_BEFORE = re.compile(r"(?:[\w)%]\s*[+*/\u00d7\u00f7^]|[\d)]\s*-|\d\s+x\s)\s*\(*\Z")
_OPERATOR_AFTER = re.compile(r"(?:[)%\s]*(?:[a-z]+\s*)?[+*/\u00d7\u00f7^]|[)%]*\s*-|\s*x\s)\s*\(*-?[.\d]")
_CLAUSE_END = re.compile(r",(?!\d)|;|\s\(|\b(?:because|since|as|which|so)\b")
_COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES = {word: number for number, word in enumerate(_COUNTED.split())} | {"hundred": 100}
_VALUES |= {word: 10 * number for number, word in enumerate(_TENS.split(), 2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_WORD = "|".join(sorted((*_VALUES, *_SCALES), key=len, reverse=True))
_SPELLED = re.compile(rf"(?i)\b(?:minus |negative )?(?:{_WORD})(?:(?:[\s-]|\sand\s)+(?:{_WORD}))*\b(?! of\b)")


class _Numbers:
    def _parsed(self, text: str) -> _Parsed:
        if re.search(r"\d", text):
            found = [_Mention(*m.span(), _canonical(m[0])) for m in _NUMBER.finditer(text)]
        else:
            found = [_Mention(*m.span(), _spelled(m[0])) for m in _SPELLED.finditer(text)]

        def is_operand(one: _Mention) -> bool:
            before = _OPERATOR_BEFORE.search(text, max(0, one.start - 20), one.start)
            return bool(before or _OPERATOR_AFTER.match(text, one.end))

        return _parse_mentions(text, [one for one in found if not is_operand(one)], _JOINED_NUMBERS)

    def stated(self, sentence: str) -> str | None:
        parsed = self._parsed(sentence)
        if not parsed.meant:
            return _NO_ANSWER if parsed.is_open else None
        first = parsed.meant[0]
        clause = sentence[: first.end] + _CLAUSE_END.split(sentence[first.end :], maxsplit=1)[0]
        return _result(clause, parsed.meant) or first.value

    def unannounced(self, passage: str) -> str | None:
        for sentence in reversed(_SENTENCE_END.split(passage)):
            for text in (re.sub(r"\([^()]*\)", " ", sentence), sentence):
                parsed = self._parsed(text)
                if parsed.meant:
                    return _result(text, parsed.meant) or parsed.meant[-1].value
                if parsed.is_open:
                    return _NO_ANSWER
        return None


def _result(text: str, numbers: Sequence[_Mention]) -> str | None:
    """The first of the numbers behind the last "=" of `text`."""
    equals = text.rfind("=")
    return next((one.value for one in numbers if 0 <= equals < one.start < len(text)), None)


class _Texts:
    _BRACKETS = r"((?:[\[\](){}<>]\s*)+)"
    _WORDS = r"[a-z][^\sA-Z,.:;?!]*(?:,? [a-z][^\sA-Z,.:;?!]*)*"

    def __init__(self, form: Form) -> None:
        self._form = form

    def stated(self, sentence: str) -> str | None:
        if self._form == "brackets" and (run := re.match(rf"\W*?{self._BRACKETS}", sentence)):
            return run[1].strip()
        return _undecorated(sentence) or None

    def unannounced(self, passage: str) -> str | None:
        reply = _undecorated(passage.strip())
        last_line = reply.rpartition("\n")[2]
        if re.fullmatch(self._WORDS, reply):
            return reply
        if brackets := re.search(rf"(?:^|\s){self._BRACKETS}$", last_line):
            return brackets[1].strip()
        numbers = _NUMBER.findall(last_line)
        return numbers[0] if len(numbers) == 1 else None


def same_answer(answer: str, target: str) -> bool:
    """Equality of free answers: numbers by value; of others case, spacing, commas, quotes and a final full
    stop do not matter."""
    values = _value(answer), _value(target)
    return values[0] == values[1] if None not in values else _plain(answer) == _plain(target)


def _value(text: str) -> Fraction | None:
    number = re.fullmatch(rf"[-+]?{_UNSIGNED}", _plain(text)) if len(text) < 200 else None
    return Fraction(re.sub(r"[,' ]", "", number[0])) if number else None


def _canonical(number: str) -> str:
    """A number without thousands' marks, trailing zeros and exponent."""
    digits = re.sub(r"[,' ]", "", number)
    if "/" in digits:
        return digits
    digits = format(Decimal(digits), "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _spelled(words: str) -> str:
    """As the package word2number has it: words that are no number, one before a comma say, do not count."""
    total, part = 0, list[int]()
    for word in re.findall(r"\w+", words.lower()):
        if word in _SCALES:
            total, part = total + max(_joined(part), 1) * _SCALES[word], []
        elif word in _VALUES:
            part.append(_VALUES[word])
    value = total + _joined(part)
    return str(-value if re.match("minus|negative", words, re.IGNORECASE) else value)


def _joined(numbers: list[int]) -> int:
    """Below 1,000: "two hundred five" is 2 * 100 + 5, and so are any three or four; of more, the first."""
    if len(numbers) in (3, 4) or (len(numbers) == 2 and 100 in numbers):
        return numbers[0] * numbers[1] + sum(numbers[2:])
    return sum(numbers if len(numbers) == 2 else numbers[:1])


def _plain(text: str) -> str:
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.casefold())
    text = re.sub(r"[,\"`*$]", " ", text).strip().removesuffix(".")
    return " ".join(text.split()) if re.search(r"\w", text) else re.sub(r"\s", "", text)
