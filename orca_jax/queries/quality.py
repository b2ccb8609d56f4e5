"""What is wrong with a trace: flags, each a column that is counted and a filter that can be chosen.

  duplicate            the same question under the same message again (of one sample), or the same answer too;
                       always filtered
  near_duplicate       nearly the same question (MinHash); looked for only where it is a filter
  contaminated         the question meets a benchmark's text; looked for in traces that came in a file, as
                       queries are checked before they are asked
  refusal              the answer declines
  self_identification  the answer speaks of itself as a model
  truncated            the answer stops within a sentence
  repetitive           half of its runs of eight words were said before in it
  disagrees            it does not give the target
  unchecked            it has no target, or one too long to be looked for

SlimOrca's rule, to keep what agrees with FLAN's target, is the pair `disagrees`, `unchecked`, by rules in the
place of its GPT-4 judge; `disagrees` alone keeps what cannot be checked.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from orca_jax.queries.contamination import Index
from orca_jax.queries.duplicates import Exact, Near
from orca_jax.queries.multiple_choice import options
from orca_jax.records import Query, Trace

NEAR_SIMILARITY = 0.8
LONGEST_TARGET = 8  # words of a target that is looked for
LONG_LINE = 12  # words from which a line without an end counts as broken off
RUN = 8  # words
LEAST_RUNS = 24  # in an answer that is judged by its repetitions

_CANNOT = (
    r"(?:can(?:no|['’])t|can not|(?:am|['’]m|is|are) (?:not able|unable)|do(?: no|n['’])t have"
    r"|won['’]t|will not)"
)
_MODEL = r"(?:an? )?(?:ai|artificial intelligence|(?:ai |large )?language model|chatbot|virtual assistant)\b"
_EXCUSE = (
    rf"(?:i['’]m|i am|my apologies|apologies|sorry|unfortunately|as {_MODEL}|i apologi[sz]e)\b.{{0,120}}?"
)
_DEED = (
    r"(?:assist|help|provide|answer|fulfil|complete|comply|determine|generate|translate|access"
    r"|do (?:this|that)|see|enough|any)"
)
_REFUSAL = re.compile(
    rf"\A\W*(?:{_EXCUSE})?\bi\b[^.!?\n]{{0,20}}?{_CANNOT}\b[^.!?\n]{{0,30}}?\b{_DEED}"
    r"|\A\W*(?:i must decline|i['’]m sorry,? but (?:this|that|the) (?:question|request|task))",
    re.IGNORECASE | re.DOTALL,
)
_SELF = re.compile(
    rf"\bas {_MODEL}|\bi(?: am|['’]m) (?:just |only |merely )?{_MODEL}|\bi(?: am|['’]m) (?:chatgpt|gpt-?\d)"
    r"|\b(?:created|developed|trained) by openai\b|\bmy (?:training data|knowledge cut-?off)\b",
    re.IGNORECASE,
)
_ENDS = re.compile(r"""[.!?。！？…:;)\]}>"'”’`*|~\d$%#=/\\-]\s*\Z""")
_WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+|[^\w\s]")
_ANSWER = re.compile(r"\banswer(?:\s+(?:is|would be|choice is|should be)\b\s*:?|\s*:)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_LABEL = re.compile(r"\A\W*(?:\(([A-Za-z])\)|([A-Z]))\W*\Z")
_SAID = re.compile(r"\(([A-Za-z])\)|\b([A-Z])(?=[).:]|\s*\Z)")  # an option's letter
_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}


def is_refusal(answer: str) -> bool:
    return _REFUSAL.search(answer[:400]) is not None


def identifies_itself(answer: str) -> bool:
    return _SELF.search(answer) is not None


def is_truncated(answer: str) -> bool:
    """Whether its last line is long and has no end."""
    last = answer.rstrip().rpartition("\n")[2]
    return len(last.split()) >= LONG_LINE and _ENDS.search(last) is None


def is_repetitive(answer: str) -> bool:
    words = answer.split()
    runs = [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
    return len(runs) >= LEAST_RUNS and len(set(runs)) * 2 <= len(runs)


def agrees(answer: str, target: str, question: str = "") -> bool | None:
    """Whether an answer gives the target; None where that cannot be checked.

    The answer is looked for in what follows its last "answer is", or else in its last and its first sentence.
    There the target must stand, or its option's label or text, and no other option beside it.

    Args:
      question: its options are the target's rivals.
    """
    wanted, listed = _words(target), options(question)
    if not wanted or len(wanted) > LONGEST_TARGET:
        return None
    if _words(answer) == wanted:
        return True
    label = _label(target, listed)
    place = ord(label) - ord("a") if label else len(listed)
    option = _words(listed[place]) if place < len(listed) else []
    rivals = [words for words in map(_words, listed) if words and words not in (option, wanted)]
    if len(wanted) == 1 and wanted[0] in _OPPOSITES:
        rivals.append([_OPPOSITES[wanted[0]]])
    accepted = [words for words in ([] if _LABEL.match(target) else wanted, option) if words]
    return any(_states(place, label, accepted, rivals) for place in _places(answer))


def _label(target: str, listed: Sequence[str]) -> str:
    """The letter of the target's option, if it has one: its own, or that of the option which it is."""
    if match := _LABEL.match(target):
        return (match[1] or match[2]).lower()
    wanted = _words(target)
    return next((chr(ord("a") + place) for place, text in enumerate(listed) if _words(text) == wanted), "")


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
    words = [_number(word) for word in _WORD.findall(text.lower())]
    return [word for word in words if word[0].isalnum()] or [word for word in words if word in "()[]{}<>"]


def _number(word: str) -> str:
    if not word[0].isdecimal():
        return word
    plain = word.replace(",", "")
    return plain.rstrip("0").rstrip(".") if plain.count(".") == 1 else plain


def _question(trace: Trace) -> str:
    return "\n".join(message.content for message in trace.messages if message.role == "user")


_JUDGES: Mapping[str, Callable[[str], bool]] = {
    "refusal": is_refusal,
    "self_identification": identifies_itself,
    "truncated": is_truncated,
    "repetitive": is_repetitive,
}
ALWAYS = ("duplicate",)
FLAGS = (*ALWAYS, "near_duplicate", "contaminated", *_JUDGES, "disagrees", "unchecked")


def check(filters: Iterable[str]) -> None:
    """Raises ValueError for a filter that is no flag."""
    unknown = sorted(set(filters) - set(FLAGS))
    if unknown:
        raise ValueError(f"unknown filter {unknown[0]!r}; known: {', '.join(FLAGS)}")


@dataclasses.dataclass
class Examiner:
    """Flags traces, one after the other, and counts flags and what they leave out.

    Attributes:
      filters: flags that leave a trace out, besides those of `ALWAYS`.
      examined: the benchmarks' texts; None: no trace is checked against them.
      flags: traces by flag.
      left_out: traces by the first flag that leaves them out, in the order of `FLAGS`.
    """

    filters: tuple[str, ...] = ()
    examined: Index | None = None
    traces: int = 0
    flags: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __post_init__(self) -> None:
        check(self.filters)
        self._asked, self._answered = Exact(), Exact()
        self._near = Near(NEAR_SIMILARITY) if "near_duplicate" in self.filters else None

    def stream(self, placed: Iterable[tuple[int, Trace]]) -> Iterator[tuple[int, Trace, list[str]]]:
        """Traces with their places, and their flags."""
        if self.examined is None:
            yield from ((place, trace, self.examine(trace)) for place, trace in placed)
            return
        traces, asked = itertools.tee(placed)
        met = self.examined.check(Query(trace.id, _question(trace), "", "") for _, trace in asked)
        for (place, trace), (_, hits) in zip(traces, met):
            yield place, trace, self.examine(trace, contaminated=bool(hits))

    def examine(self, trace: Trace, *, contaminated: bool = False) -> list[str]:
        """The flags of a trace, in the order of `FLAGS`; none for one without an answer."""
        found = list(self._found(trace, contaminated)) if trace.answer.strip() else []
        self.traces += 1
        self.flags.update(found)
        if reason := self.reason(found):
            self.left_out[reason] += 1
        return found

    def reason(self, flags: Iterable[str]) -> str | None:
        """The flag that leaves a trace out."""
        return next((flag for flag in flags if flag in ALWAYS or flag in self.filters), None)

    def _found(self, trace: Trace, contaminated: bool) -> Iterator[str]:
        texts = [message.content for message in trace.messages]
        asked = self._asked.seen(str(trace.sample), *texts[:-1])
        if asked | self._answered.seen(*texts):
            yield "duplicate"
        elif self._near and self._near.seen(_question(trace)):
            yield "near_duplicate"
        if contaminated:
            yield "contaminated"
        yield from (flag for flag, judge in _JUDGES.items() if judge(trace.answer))
        agreed = agrees(trace.answer, trace.target, _question(trace)) if trace.target else None
        if not agreed:
            yield "unchecked" if agreed is None else "disagrees"

    def summary(self) -> dict[str, object]:
        """The counts, every flag among them, for a manifest."""
        skipped = {"near_duplicate": self._near is None, "contaminated": self.examined is None}
        flags = {flag: self.flags[flag] for flag in FLAGS if not skipped.get(flag)}
        return {
            "traces": self.traces,
            "flags": flags,
            "left_out": dict(sorted(self.left_out.items())),
            "kept": self.traces - self.left_out.total(),
        }
