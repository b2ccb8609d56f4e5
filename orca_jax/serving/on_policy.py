"""Rounds on policy: the student that is being trained answers, and its teacher goes on where it goes wrong.

A reply is held line by line against the puzzle's true steps. One that is right stays as it is; of another,
the lines before the first wrong one stay, and the teacher writes those that follow: an oracle exactly and for
nothing, a model behind an API by the ledger, as it does when traces are collected. All of the trace is
supervised: the lines that stay are what the teacher would say there (DAgger, arXiv 1011.0686).
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from orca_jax import artifacts, files
from orca_jax.config import ExperimentConfig
from orca_jax.config_teachers import TeacherConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data import tokens
from orca_jax.data.tokens import TokenStore
from orca_jax.progress import progress
from orca_jax.queries import puzzles, system_messages
from orca_jax.queries.make import assign_message, training_puzzles
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.queries.puzzles.oracles import Mended, right_lines, wanted_style
from orca_jax.records import Outcome, Query, Reply, Sampling, Trace
from orca_jax.serving.local import InTraining
from orca_jax.student.presets import LlamaConfig
from orca_jax.teachers import collection
from orca_jax.teachers.collection import TRACES, Job
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.ledger import Answer
from orca_jax.training.curriculum import Round
from orca_jax.training.hosts import HostsError

FOLDER, REPLIES = "rounds", "replies.jsonl"
BATCH = 128  # replies decoded at once
GO_ON = (
    "{question}\n\nA solution begins with the lines below, all of which are right. Write the lines that "
    "follow them, up to the answer, and nothing else.\n\n{lines}"
)


class Asked(NamedTuple):
    """A question of a round: its puzzle, its example's id, and the query as the teacher gets it."""

    id: str
    puzzle: Puzzle
    query: Query


@dataclasses.dataclass(frozen=True)
class Continuations(Job):
    """Requests to go on from lines that are right; without any, the questions as they are collected."""

    asked: Sequence[tuple[Query, Sequence[str]]]
    made_in: Path

    @property
    def directory(self) -> Path:
        return self.made_in

    def requests(self) -> Iterator[tuple[Query, Request]]:
        for query, lines in self.asked:
            text = GO_ON.format(question=query.text, lines="\n".join(lines)) if lines else query.text
            request = Request(collection.conversation(dataclasses.replace(query, text=text)), self.sampling)
            yield query, request


class Rounds:
    """Makes the traces of rounds on policy in training/rounds/NUMBER, a token store with its traces.

    Args:
      config: with the layout that the data were prepared in.
      student: the shape of the parameters that are given, adapters included.
      mesh: where they are.
      workdir: holds the tokenizer and the token stores.
      fingerprint: the training's, which settings and data count in.

    Raises:
      HostsError: there are several hosts.
    """

    def __init__(
        self, config: ExperimentConfig, student: LlamaConfig, mesh: Mesh, workdir: Path, fingerprint: str
    ):
        if jax.process_count() > 1:
            raise HostsError("a curriculum stage on policy works on one host: its student answers there")
        self.config, self.workdir, self.fingerprint = config, workdir, fingerprint
        self.student = InTraining(student, mesh, jnp.dtype(config.train.compute_dtype))
        self.tokenizer = tokenizers.load(workdir / "tokenizer")
        self.teachers = {teacher.name: teacher for teacher in config.teachers}

    def __call__(self, params: Any, round: Round) -> TokenStore:
        """The traces of a round: those that are there, or else made by these parameters.

        Raises:
          ArtifactError: there are no parameters, and the round is not finished.
          CollectionStopped: no further request may be sent to the API.
          ValueError: the round's data set has fewer questions.
        """
        directory = self.workdir / "training" / FOLDER / str(round.number)
        provenance = {"program": "on_policy", "round": round.number}
        artifact = artifacts.Artifact(directory, provenance, {"training": self.fingerprint})
        if artifact.finished():
            return TokenStore(directory)
        if params is None:
            raise artifacts.ArtifactError(
                f"{directory} is gone or unfinished, and training is past its beginning: put it back, or "
                f"remove {directory.parents[1]} to train from the beginning"
            )
        artifact.begin()
        asked = self.questions(round)
        replies = self._replies(params, round, asked, directory / REPLIES)
        traces, counts = self._mended(round, asked, replies, directory)
        files.write_jsonl(directory / TRACES, traces)
        supervise, layout = self.config.data.supervise, self.config.data.layout
        stored = tokens.write_store(
            directory,
            traces,
            tokens.Encoder(self.tokenizer, layout, supervise),
            malformed=self.teachers[round.source].malformed,
        )
        artifact.finish({**stored, "replies": counts})
        return TokenStore(directory)

    def questions(self, round: Round) -> list[Asked]:
        """Examples of the round's data set, each round the next ones of one order, round and round.

        None of them is held out of training.
        """
        config, teacher = self.config, self.teachers[round.source]
        store = TokenStore(self.workdir / "tokens" / teacher.name)
        there = np.flatnonzero(store.columns["collection"] == puzzles.COLLECTION)
        if len(there) < round.rules.questions:
            raise ValueError(
                f"curriculum stage {round.name!r}: on_policy.questions={round.rules.questions}, and data set "
                f"{teacher.name!r} is trained on {len(there)} puzzles; lower it"
            )
        order, count = np.random.default_rng(config.seed).permutation(there), round.rules.questions
        chosen = np.take(order, range(round.number * count, (round.number + 1) * count), mode="wrap")
        known = {puzzle.id: puzzle for puzzle in training_puzzles(config.puzzles, config.seed)[0]}
        asked = []
        for index in chosen:
            name = store[index]["id"]
            puzzle = known[name.split("/")[0]]
            shares = config.puzzles.messages
            message = assign_message(puzzle.id, bool(puzzle.choices), shares, config.seed)
            query = system_messages.under(puzzles.to_query(puzzle, message), teacher.message)
            asked.append(Asked(name, puzzle, query))
        return asked

    def _replies(self, params: Any, round: Round, asked: Sequence[Asked], path: Path) -> list[Reply]:
        """The student's, kept in a file: if the teacher's part is interrupted, it goes on with the same."""
        if path.exists():
            return list(files.read_jsonl(path, Reply))
        length = self.config.data.row_length + 1
        options = dict(batch_size=min(BATCH, len(asked)), max_length=length)
        student = self.student(params, self.tokenizer, self.config.data.layout, **options)
        shown = self.teachers[round.source].shown
        prompts = [collection.conversation(system_messages.under(one.query, shown)) for one in asked]
        seed = int(artifacts.digest([self.config.seed, round.number])[:8], 16)
        sampling = dataclasses.replace(sampling_of(round), seed=seed)
        replies: dict[int, Reply] = {}
        with progress(f"round {round.number}: the student answers", len(asked)) as report:
            for index, reply in student.as_finished(prompts, sampling):
                replies[index] = reply
                report(len(replies))
        ordered = [replies[index] for index in range(len(asked))]
        files.write_jsonl(path, ordered)
        return ordered

    def _mended(
        self, round: Round, asked: Sequence[Asked], replies: Sequence[Reply], directory: Path
    ) -> tuple[list[Trace], dict[str, float]]:
        """The traces, and for the metrics what became of the replies: shares, and lines that were kept."""
        teacher, sampling = self.teachers[round.source], sampling_of(round)
        if teacher.api:
            mended = self._by_api(teacher, asked, replies, directory)
        else:
            oracle = collection.oracle(self.config, teacher)
            mended = [
                (oracle.continued(one.puzzle, collection.conversation(one.query), reply.text), Outcome.OK)
                for one, reply in zip(asked, replies, strict=True)
            ]
        traces = []
        for one, (found, outcome) in zip(asked, mended, strict=True):
            answer = Answer(Reply(outcome, found.text), "")
            trace = collection.to_trace(one.query, Request((), sampling), answer, teacher)
            told = {"kept_lines": found.kept, "right": found.right}
            name = f"{one.id}/round-{round.number}"
            traces.append(dataclasses.replace(trace, id=name, extra={**trace.extra, **told}))
        counts = {
            "mended": mean(not found.right for found, _ in mended),
            "kept_lines": mean(found.kept for found, _ in mended),
            "cut_off": mean(reply.outcome is Outcome.LENGTH for reply in replies),
        }
        return traces, {"replies": len(replies), **counts}

    def _by_api(
        self, teacher: TeacherConfig, asked: Sequence[Asked], replies: Sequence[Reply], directory: Path
    ) -> list[tuple[Mended, Outcome]]:
        """Has the API write what follows the right lines of each reply that is not right."""
        found = []
        for one, reply in zip(asked, replies, strict=True):
            style = wanted_style(collection.conversation(one.query))
            found.append(right_lines(one.puzzle, style, reply.text))
        wanted = [
            (one.query, right.lines[: right.kept]) for one, right in zip(asked, found) if not right.whole
        ]
        job = Continuations(self.config, teacher, self.workdir, asked=wanted, made_in=directory)
        every = collection.traces(job, lambda job: contextlib.nullcontext(collection.endpoint(job)))
        mended, written = [], iter(list(every))
        for reply, right in zip(replies, found):
            if right.whole:
                mended.append((Mended(reply.text, right.kept, True), Outcome.OK))
            else:
                trace = next(written)
                text = "\n".join([*right.lines[: right.kept], trace.answer])
                mended.append((Mended(text, right.kept, False), trace.outcome))
        return mended


def sampling_of(round: Round) -> Sampling:
    """How the student's replies of a round are drawn."""
    rules = round.rules
    return Sampling(temperature=rules.temperature, max_tokens=rules.max_tokens)


def mean(values: Iterable[float]) -> float:
    """The mean, to four places; 0 of none."""
    return round(statistics.fmean(given), 4) if (given := list(values)) else 0.0
