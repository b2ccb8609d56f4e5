"""What is wrong with a trace: flags, each a column that is counted and a filter that can be chosen.

  duplicate            the same question under the same message again (of one sample), or the same answer too;
                       always filtered
  near_duplicate       nearly the same question (MinHash); looked for only where it is a filter
  contaminated         the question meets a benchmark's text; looked for in traces that came in a file, as
                       queries are checked before they are sent
  refusal              the answer declines
  self_identification  the answer speaks of itself as a model
  truncated            the answer stops within a sentence
  repetitive           half of its runs of eight words were said before in it
  disagrees            it does not give the target
  unchecked            it has no target, or one too long to be looked for
  missteps             it states a step that is none of its puzzle's, or no step; looked for only where it is
                       a filter, and found in every trace that asks none of the config's puzzles
  outvoted             it does not give the answer that more than half of its query's samples give
  spare                it gives that answer, and so does an earlier sample that no filter leaves out
  later                an earlier sample of its query is kept

The pair `outvoted`, `spare` keeps one trace of each query on which most samples agree, with a target or
without; the two are looked for only where one of them is a filter, as `later` is. The pair `missteps`,
`later` keeps the first sample whose steps check: a verifier of steps (arXiv 2305.20050) as a filter, which
procedural puzzles have.
SlimOrca's rule, to keep what agrees with FLAN's target, is the pair `disagrees`, `unchecked`, by rules in the
place of its GPT-4 judge; `disagrees` alone keeps what cannot be checked.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import importlib
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from orca_jax.config_teachers import COMPARED, VOTED
from orca_jax.queries.agreement import agrees, final_answer, majority
from orca_jax.queries.contamination import Hit, Index, tokens
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.queries.puzzles.oracles import check_steps
from orca_jax.records import Outcome, Query, Trace

NEAR_SIMILARITY = 0.8
SHINGLE, PERMUTATIONS = 5, 128  # words, and hashes of a sketch, in MinHash
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


class Exact:
    """Remembers 64 bits of each entry."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def seen(self, *texts: str) -> bool:
        """Whether just these texts were given before; white space at their ends does not count."""
        joined = "\x00".join(text.strip() for text in texts).encode("utf-8", "surrogatepass")
        identity = int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "big")
        known = identity in self._seen
        self._seen.add(identity)
        return known


class Near:
    """MinHash with locality-sensitive hashing (Broder, 1997) over runs of five words, as datasketch has it.

    Case and punctuation do not count. Every text that is no near duplicate is kept in memory as a sketch.
    `similarity` is the estimated Jaccard similarity from which two texts are near duplicates.

    Raises:
      ValueError: datasketch is not installed.
    """

    def __init__(self, similarity: float):
        try:
            self._library: Any = importlib.import_module("datasketch")
        except ImportError as error:
            raise ValueError(
                "near duplicates need datasketch: pip install 'orca_jax[dedup]', or look for none"
            ) from error
        self._similarity, self._sketches = similarity, list[Any]()
        self._index = self._library.MinHashLSH(threshold=similarity, num_perm=PERMUTATIONS)

    def seen(self, text: str) -> bool:
        """Whether a text given before, and no near duplicate itself, is at least so similar."""
        words = tokens(text)
        runs = {" ".join(words[at : at + SHINGLE]) for at in range(max(1, len(words) - SHINGLE + 1))}
        sketch = self._library.MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([run.encode("utf-8", "surrogatepass") for run in runs])
        near = (self._sketches[place] for place in self._index.query(sketch))
        if any(sketch.jaccard(other) >= self._similarity for other in near):
            return True
        self._index.insert(len(self._sketches), sketch)
        self._sketches.append(sketch)
        return False


def _truncated(answer: str) -> bool:
    """Whether its last line is long and has no end."""
    last = answer.rstrip().rpartition("\n")[2]
    return len(last.split()) >= LONG_LINE and _ENDS.search(last) is None


def _repetitive(answer: str) -> bool:
    words = answer.split()
    runs = [tuple(words[start : start + RUN]) for start in range(len(words) - RUN + 1)]
    return len(runs) >= LEAST_RUNS and len(set(runs)) * 2 <= len(runs)


def _question(trace: Trace) -> str:
    return "\n".join(message.content for message in trace.messages if message.role == "user")


# Flags that the answer alone decides.
JUDGES: Mapping[str, Callable[[str], bool]] = {
    "refusal": lambda answer: _REFUSAL.search(answer[:400]) is not None,
    "self_identification": lambda answer: _SELF.search(answer) is not None,
    "truncated": _truncated,
    "repetitive": _repetitive,
}
ALWAYS = ("duplicate",)
FLAGS = (*ALWAYS, "near_duplicate", "contaminated", *JUDGES, "disagrees", "unchecked", "missteps", *COMPARED)
WITH_PUZZLES = frozenset(("missteps", *VOTED))  # filters that look at the puzzle of a trace


@dataclasses.dataclass
class TraceChecker:
    """Flags traces, one after the other, and counts flags and what they leave out.

    Attributes:
      filters: flags that leave a trace out, besides those of `ALWAYS`.
      evaluated: the benchmarks' texts; None: no trace is checked against them.
      puzzles: by question, those that traces may be of.
      flags: traces by flag.
      left_out: traces by the first flag that leaves them out, in the order of `FLAGS`.
    """

    filters: tuple[str, ...] = ()
    evaluated: Index | None = None
    puzzles: Mapping[str, Puzzle] = dataclasses.field(default_factory=dict)
    traces: int = 0
    flags: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def __post_init__(self) -> None:
        self._asked, self._answered = Exact(), Exact()
        self._near = Near(NEAR_SIMILARITY) if "near_duplicate" in self.filters else None
        self._nearly = ("", False)  # the last query that was looked up, and what was found
        self._votes = not set(VOTED).isdisjoint(self.filters)

    def stream(self, placed: Iterable[tuple[int, Trace]]) -> Iterator[tuple[int, Trace, list[str]]]:
        """Traces with their places, and their flags. A query's samples stand one after the other."""
        met: Iterable[tuple[object, list[Hit]]] = itertools.repeat((None, []))
        if self.evaluated is not None:
            placed, asked = itertools.tee(placed)
            met = self.evaluated.check(Query(trace.id, _question(trace), "", "") for _, trace in asked)
        for _, group in itertools.groupby(zip(placed, met), lambda entry: entry[0][1].query_id):
            samples = list(group)
            answers = [
                self._vote(trace) if self._votes and trace.outcome is Outcome.OK else None
                for (_, trace), _ in samples
            ]
            elected, taken, kept = majority(answers), False, False
            for ((place, trace), (_, hits)), answer in zip(samples, answers):
                known = ["contaminated"] if hits else []
                agreed = elected is not None and answer == elected
                if self._votes and (taken or not agreed):
                    known.append("spare" if agreed else "outvoted")
                if kept and "later" in self.filters:
                    known.append("later")
                found = self.check(trace, known)
                kept |= self.reason(found) is None
                taken |= agreed and self.reason(found) is None
                yield place, trace, found

    def _vote(self, trace: Trace) -> str | None:
        """The answer that a sample ends in, also the last line of a puzzle's usual form."""
        puzzle, last = self.puzzles.get(_question(trace)), trace.answer.rstrip().rpartition("\n")[2]
        closes = puzzle is not None and last in map(puzzle.instance.closing, puzzle.choices)
        return final_answer(trace.answer, _question(trace)) or (last if closes else None)

    def check(self, trace: Trace, known: Collection[str] = ()) -> list[str]:
        """The flags of a trace, in the order of `FLAGS`; none for one without an answer.

        Args:
          known: those that are not seen in the trace alone.
        """
        found = set(self._found(trace)).union(known) if trace.answer.strip() else set[str]()
        flags = [flag for flag in FLAGS if flag in found]
        self.traces += 1
        self.flags.update(flags)
        if reason := self.reason(flags):
            self.left_out[reason] += 1
        return flags

    def reason(self, flags: Iterable[str]) -> str | None:
        """The flag that leaves a trace out."""
        return next((flag for flag in flags if flag in ALWAYS or flag in self.filters), None)

    def _found(self, trace: Trace) -> Iterator[str]:
        texts = [message.content for message in trace.messages]
        asked = self._asked.seen(str(trace.sample), *texts[:-1])
        if asked | self._answered.seen(*texts):
            yield "duplicate"
        elif self._near:
            if self._nearly[0] != trace.query_id:  # a query's later samples are not near its first
                self._nearly = trace.query_id, self._near.seen(_question(trace))
            if self._nearly[1]:
                yield "near_duplicate"
        yield from (flag for flag, judge in JUDGES.items() if judge(trace.answer))
        agreed = agrees(trace.answer, trace.target, _question(trace)) if trace.target else None
        if not agreed:
            yield "unchecked" if agreed is None else "disagrees"
        if "missteps" in self.filters:
            puzzle = self.puzzles.get(_question(trace))
            steps = check_steps(puzzle, trace.answer) if puzzle else None
            if steps is None or not steps.stated or steps.wrong > 0:
                yield "missteps"

    def summary(self) -> dict[str, object]:
        """The counts, every flag among them, for a manifest."""
        skipped = {"near_duplicate": self._near is None, "contaminated": self.evaluated is None}
        skipped |= dict.fromkeys(VOTED, not self._votes)
        skipped |= {name: name not in self.filters for name in ("missteps", "later")}
        flags = {flag: self.flags[flag] for flag in FLAGS if not skipped.get(flag)}
        return {
            "traces": self.traces,
            "flags": flags,
            "left_out": dict(sorted(self.left_out.items())),
            "kept": self.traces - self.left_out.total(),
        }
