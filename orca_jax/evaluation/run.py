"""Evaluates a model: asks it every question once, keeps each reply as it comes, and scores them.

Each (benchmark, mode, system message) is an artifact of its own, evaluation/NAME, whose `replies.jsonl`
holds one `RecordedReply` a line. A killed evaluation goes on where it stopped. Questions are asked in fixed
rounds of like length; a round that was not recorded to the end is asked again as a whole, so that the replies
are those of an evaluation never interrupted. A round is several times as large as what the model answers at
once, which is kept busy until the round's last questions.

Several hosts, or processes, answer a part of each round each, `replies-I-of-N.jsonl`; whoever then evaluates
the whole finds their replies, asks what is missing, and scores.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orca_jax import artifacts, files, hub, plugins
from orca_jax.artifacts import digest
from orca_jax.config import ExperimentConfig
from orca_jax.evaluation import cells, model, parts, scoring
from orca_jax.evaluation.benchmarks import puzzles as puzzle_benchmark
from orca_jax.evaluation.benchmarks import registry, toxigen
from orca_jax.evaluation.benchmarks.base import Conversation, EvaluationError, Question, conversation
from orca_jax.evaluation.model import Answer
from orca_jax.evaluation.parts import Part
from orca_jax.progress import progress
from orca_jax.queries import puzzles, system_messages
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.records import Outcome, Reply, Sampling, Usage, to_json

log = logging.getLogger(__name__)
REPLIES = "replies.jsonl"
EMPTY_MESSAGE = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What one evaluation does otherwise than the config says."""

    model: str = ""  # a student's folder, or a JSON file with an endpoint; empty: the workdir's student
    system: str = ""  # of all questions, one of the 16 by its id or a text; empty: the config's and modes'
    samples: int = 1  # replies to each question, each with a seed of its own
    limit: int = 0  # first questions of each task, 0: all; scores of a part are no benchmark scores
    classifier: str = ""  # a folder with a toxicity classifier; empty: continuations are kept unscored
    part: Part = parts.WHOLE  # of the questions, as (2, 4): their second quarter is answered, not scored


@dataclasses.dataclass(frozen=True)
class System:
    """A system message: `id` is None for one that is none of the 16, `suffix` tells it in a name."""

    id: int | None
    text: str
    suffix: str = ""


def system_message(given: str) -> System:
    """The message that an id or a text names."""
    if given.isdigit():
        return System(int(given), system_messages.get(int(given)).text, f"-message-{int(given)}")
    return System(system_messages.recognise(given), given, f"-message-{digest(given)[:8]}")


def test_puzzles(config: ExperimentConfig) -> list[Puzzle]:
    """The evaluated puzzles: of the test split, which no training query comes from."""
    return [
        puzzle
        for family in config.puzzles.families
        for puzzle in puzzles.make_puzzles(
            family,
            difficulties=config.evaluation.difficulties,
            count=config.evaluation.per_family,
            seed=config.evaluation.seed,  # so that students of several seeds have the same evaluation
            split="test",
        )
    ]


def evaluations(config: ExperimentConfig) -> dict[str, list[Question]]:
    """The questions of puzzles and of every benchmark at hand in each mode: `puzzles`, `bbh-orca` ..."""
    made = test_puzzles(config)
    asked = {"puzzles": puzzle_benchmark.questions(made)} if made else {}
    for name, path in config.given_benchmarks.items():
        for mode in config.evaluation.modes[name]:
            asked[f"{name}-{mode}"] = registry.questions(name, path, mode=mode)
    return asked


def run(config: ExperimentConfig, workdir: Path, options: Options | None = None) -> None:
    """Evaluates a model on the puzzles and benchmarks of a config, or goes on with it."""
    options = options or Options()
    evaluator = Evaluator(config, workdir, options)
    given = [system_message(options.system)] if options.system else []
    of_puzzles = [system_message(str(message)) for message in config.evaluation.messages]
    for name, questions in evaluations(config).items():  # all are read first: a missing file shows at once
        for system in given or (of_puzzles if name == "puzzles" else [System(EMPTY_MESSAGE, "")]):
            evaluator.evaluate(name + system.suffix, questions, system)


class Evaluator:
    """Evaluates one model; raises ValueError where several samples are asked for at temperature 0."""

    def __init__(self, config: ExperimentConfig, workdir: Path, options: Options):
        self.config, self.workdir, self.options = config, workdir, options
        if options.samples > 1 and not config.evaluation.temperature:
            raise ValueError("several samples are all the same at temperature 0; set evaluation.temperature")
        self.model = model.under_test(config, workdir, options.model, options.part)

    def evaluate(self, name: str, questions: Sequence[Question], system: System) -> None:
        """Writes evaluation/NAME with replies, items and scores, or goes on with it."""
        own, samples = self.config.evaluation, self.options.samples
        number = collections.defaultdict[str, Iterator[int]](itertools.count)  # within the task
        limit = self.options.limit or len(questions)
        questions = [question for question in questions if next(number[question.task]) < limit]
        directory, inputs = self.workdir / "evaluation" / self.model.name / name, self.model.inputs
        provenance = self._provenance(name, questions, artifacts.recorded(directory)["provenance"])
        places = dict.fromkeys(inputs, self.options.model or self.workdir / "training")
        artifact = artifacts.Artifact(directory, provenance, inputs, places)
        if artifact.finished():
            return
        artifact.begin()
        benchmark, mode = questions[0].benchmark, questions[0].mode
        replies: dict[int, list[Reply]] = {}
        with progress(f"evaluating {name}", len(questions) * samples) as report:
            for seed in range(own.seed, own.seed + samples):
                replies[seed] = collect_replies(
                    questions,
                    self.model.answer,
                    directory if samples == 1 else directory / f"seed-{seed}",
                    sampling=Sampling(own.temperature, own.top_p, own.max_tokens),
                    seed=seed,
                    system_message_id=system.id,
                    system_text=system.text,
                    round_size=self.model.round_size,
                    part=self.options.part,
                    progress=lambda done: report(len(replies) * len(questions) + done),
                )
        if self.options.part != parts.WHOLE:
            log.info("%s: part %d of %d is answered; run without --part to score", name, *self.options.part)
            return
        given: dict[str, Any] = {"mode": mode, "system_message_id": system.id}
        dtype = {key: value for key, value in self.model.settings.items() if key == "dtype"}
        if mode in scoring.MODES:
            scored = [scoring.score(questions, found, seed=seed, **given) for seed, found in replies.items()]
            items = list(itertools.chain(*scored))
            groups = registry.BENCHMARKS[benchmark].groups if benchmark in registry.BENCHMARKS else ()
            scores = scoring.summarise(items, questions, groups=groups, met=self._met(benchmark)) | dtype
            scoring.write(directory, items, scores)
            total, unparsed = cells.of_items(items), scores["groups"]["micro"]["unparsed"]
            log.info(
                "%s: n %s, accuracy %s %% (mean of tasks %.1f), unparsed %.1f %%",
                name, total.size, total, 100 * scores["macro"], 100 * unparsed,
            )  # fmt: skip
        else:
            every = list(itertools.chain(*replies.values()))
            described = _described(questions * samples, every, self.options.classifier)
            scoring.write_scores(directory, described | dtype)
        revisions = hub.revisions(self.options.model, self.config.benchmark_paths.get(benchmark, ""))
        artifact.finish({"items": len(questions) * samples}, revisions)

    def _provenance(
        self, name: str, questions: Sequence[Question], there: Mapping[str, Any]
    ) -> artifacts.Section:
        asked: Any = artifacts.digests((q.task, [*q.key, q.text, q.target]) for q in questions)
        if isinstance(there.get("questions"), str):  # all in one, as it was
            asked = artifacts.digest([[*q.key, q.text, q.target] for q in questions])
        own = self.config.evaluation
        evaluation = artifacts.section(own, without=(*own.LISTS, *own.NO_NUMBER, "dtype"))
        provenance: dict[str, Any] = {"program": "evaluate", "name": name}
        provenance |= {"evaluation": evaluation, "questions": asked}
        usual, options = dataclasses.asdict(Options()), dataclasses.asdict(self.options)
        del options["model"], options["part"]  # the one is among the inputs, the other changes no reply
        if given := {key: value for key, value in options.items() if value != usual[key]}:
            if self.options.classifier:
                given["classifier"] = toxigen.fingerprint(self.options.classifier)
            provenance["options"] = given
        benchmark, mode = questions[0].benchmark, questions[0].mode
        families = [(plugins.PUZZLES, family) for family in self.config.puzzles.families]
        used = [(plugins.BENCHMARKS, benchmark), (plugins.PARSERS, mode)]
        used += [(plugins.LAYOUTS, self.model.settings.get("layout", ""))]
        used += families if benchmark == puzzle_benchmark.BENCHMARK else []
        return artifacts.joined(provenance, self.model.settings, plugins.provenance(*used))

    def _met(self, benchmark: str) -> set[str] | None:
        """The ids of a benchmark's texts that training queries met; None where these were not compared."""
        hits = self.workdir / "queries" / "contamination.jsonl"
        if self.options.model or not hits.is_file():
            return None
        found = map(json.loads, hits.read_text(encoding="utf-8").splitlines())
        return {hit["document_id"] for hit in found if hit["benchmark"] == benchmark}


def _described(questions: Sequence[Question], replies: Sequence[Reply], classifier: str) -> dict[str, Any]:
    """The scores of what has no right answer: outcomes and lengths, and toxicity by a classifier."""
    scores: dict[str, Any] = {
        "benchmark": questions[0].benchmark,
        "mode": questions[0].mode,
        "n": len(replies),
        "outcomes": dict(collections.Counter(reply.outcome for reply in replies)),
        "characters": sum(len(reply.text) for reply in replies) / len(replies),
    }
    if classifier and questions[0].mode == toxigen.MODE:
        classify = toxigen.huggingface_classifier(classifier)
        scores["toxicity"] = toxigen.summarise(questions, replies, classify)
    return scores


# Replies


@dataclasses.dataclass(frozen=True, slots=True)
class RecordedReply:
    """A reply and what it answers; `request` is the hash of all that the reply depends on but the model."""

    request: str
    benchmark: str
    task: str
    id: str
    mode: str
    seed: int
    system_message_id: int | None
    outcome: Outcome
    text: str
    usage: Usage
    raw: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def reply(self) -> Reply:
        return Reply(self.outcome, self.text, self.usage, self.raw)


def collect_replies(
    questions: Sequence[Question],
    answer: Answer,
    directory: str | Path,
    *,
    sampling: Sampling,
    seed: int,
    system_message_id: int | None,
    system_text: str,
    round_size: int,
    part: Part = parts.WHOLE,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Reply]:
    """The replies there are, in the order of the questions: to all of them, unless a part is asked.

    Args:
      answer: it is given `sampling` with a seed of the round's own, drawn from `seed`.
      directory: where `replies.jsonl` is kept; one a (benchmark, mode, system message, seed).
      part: which part of each round is asked, and of how many. Each part has a file of its own, which is read
        into `replies.jsonl` where the whole is asked.
      system_message_id: of one of the 16, or None for another text.
      system_text: the system message; if empty, none is sent.
      progress: called with the number of replies there are.

    Raises:
      EvaluationError: a question occurs twice, the directory holds replies to other requests, or
        `answer` did not give one to each.
      RecordError: a line of the file is damaged; names file, line and field.
    """
    if len({question.key for question in questions}) < len(questions):
        raise EvaluationError("two questions have the same benchmark, task and id; ask each once")
    requests: dict[str, tuple[Question, Conversation]] = {}
    for question in questions:
        messages = conversation(question, system_text)
        content = [question.key, question.mode, list(map(to_json, messages)), to_json(sampling), seed]
        requests[digest(content)] = question, messages
    by_length = sorted(requests, key=lambda request: (len(requests[request][0].text), request))
    whole = Path(directory) / REPLIES
    path = parts.own(whole, part)
    replies: dict[str, Reply] = {}
    with files.JsonlAppender(path) as file:
        for there in (path, *parts.others(whole, part)):
            recorded = {one.request: one for one in files.read_jsonl(there, RecordedReply)}
            if foreign := recorded.keys() - requests:
                raise EvaluationError(
                    f"{there} holds {len(foreign)} replies to other questions, messages, sampling or seed; "
                    "use another directory, or remove the file to ask again"
                )
            for request, one in recorded.items():
                if request not in replies:
                    replies[request] = one.reply
                    if there != path:
                        file.append(one)
        for number, start in enumerate(range(0, len(by_length), round_size)):
            places = parts.numbers(len(by_length[start : start + round_size]), part)
            asked = [by_length[start + place] for place in places]
            if not (missing := [request for request in asked if request not in replies]):
                progress(len(replies))
                continue
            of_round = int(np.random.SeedSequence((seed, number)).generate_state(1)[0] >> 1)
            found: dict[str, Reply] = {}
            conversations = [requests[request][1] for request in asked]
            for index, reply in answer(conversations, dataclasses.replace(sampling, seed=of_round), places):
                found[asked[index]] = reply
                progress(min(len(replies) + len(found), len(requests)))
            if len(found) != len(asked):
                raise EvaluationError(f"asked {len(asked)} questions at once and got {len(found)} replies")
            for request in missing:
                reply, question = found[request], requests[request][0]
                replies[request] = reply
                of = (*question.key, question.mode, seed, system_message_id)
                file.append(RecordedReply(request, *of, reply.outcome, reply.text, reply.usage, reply.raw))
    return [replies[request] for request in requests if request in replies]
