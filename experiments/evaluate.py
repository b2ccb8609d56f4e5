"""Evaluates a model on the puzzles and on every benchmark of the config, each in its modes.

    python -m experiments.evaluate run --config=configs/mini.py --workdir=runs/mini
    python -m experiments.evaluate score|compare|show|judge|lm_eval --help

`run` may be left out. It evaluates the workdir's newest whole checkpoint, or what --model names: a Hugging
Face folder, an imported student, another workdir, or a JSON file with an endpoint's settings.
"""

from __future__ import annotations

from orca_jax.experiments import launch

if __name__ == "__main__":
    launch.start("evaluate")  # before the imports below, which take seconds

import dataclasses
import functools
import importlib
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from orca_jax import artifacts
from orca_jax.config import ExperimentConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.evaluation import answering, modes, scoring, toxicity
from orca_jax.evaluation import run as evaluation_run
from orca_jax.evaluation.benchmarks import agieval, registry
from orca_jax.evaluation.benchmarks import puzzles as puzzle_benchmark
from orca_jax.evaluation.questions import Question
from orca_jax.experiments import evaluate_who, options
from orca_jax.progress import progress
from orca_jax.queries import puzzles, system_messages
from orca_jax.queries.puzzles.base import Puzzle
from orca_jax.records import Reply, Sampling
from orca_jax.reporting import cells
from orca_jax.serving.local import LocalStudent
from orca_jax.training import students

log = logging.getLogger(__name__)
options.define("evaluate")
EMPTY_MESSAGE = 1
LISTS = ("messages", "modes")  # which evaluations there are, no setting of one
Details = Callable[[Question, Reply], dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What one evaluation does otherwise than the config says.

    Attributes:
      model: a student's folder, or a JSON file with an endpoint; empty: the workdir's student.
      system: the system message for all questions: one of the 16 by its id, or a text; empty: what the
        config and the modes say.
      samples: replies to each question, each with a seed of its own.
      limit: questions of each task, the first ones; 0: all. Scores of a part are no benchmark scores.
      second: who replies in AGIEval's second stage, a JSON file; empty: the one who is evaluated.
      classifier: a folder with a toxicity classifier; without one, continuations are kept unscored.
    """

    model: str = ""
    system: str = ""
    samples: int = 1
    limit: int = 0
    second: str = ""
    classifier: str = ""


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


def load_student(config: ExperimentConfig, workdir: Path) -> LocalStudent:
    step, params, shape = students.trained(workdir)
    manifest = artifacts.read_manifest(workdir / "training")
    config = students.as_made(config, manifest)
    log.info("evaluating the student of step %d", step)
    return LocalStudent(
        params,
        shape,
        tokenizers.load(workdir / "tokenizer"),
        config.data.layout,
        checkpoint=f"{manifest['fingerprint']}-{step}",
        batch_size=config.evaluation.batch_size,
        max_length=config.evaluation.max_length,
    )


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
    return System(system_messages.recognise(given), given, f"-message-{artifacts.digest(given)[:8]}")


class Evaluator:
    """Evaluates one model; each (benchmark, mode, system message) is an artifact of its own."""

    def __init__(self, config: ExperimentConfig, workdir: Path, options: Options):
        self.config, self.workdir, self.options = config, workdir, options
        if options.samples > 1 and not config.evaluation.temperature:
            raise ValueError("several samples are all the same at temperature 0; set evaluation.temperature")
        self.who = evaluate_who.evaluated(
            config, workdir, options.model, lambda: load_student(config, workdir)
        )

    def evaluate(
        self, name: str, questions: Sequence[Question], system: System, details: Details | None = None
    ) -> None:
        """Writes evaluation/NAME with replies, items and scores, or goes on with it."""
        questions = list(_first_of_tasks(questions, self.options.limit))
        directory = self.workdir / "evaluation" / self.who.name / name
        provenance = self._provenance(name, questions, artifacts.recorded(directory)["provenance"])
        places = dict.fromkeys(self.who.inputs, self.options.model or self.workdir / "training")
        if artifacts.is_finished(directory, provenance, self.who.inputs, places=places):
            return
        artifacts.begin(directory, provenance, self.who.inputs, places=places)
        seed = self.config.evaluation.seed
        seeds = range(seed, seed + self.options.samples)
        with progress(f"evaluating {name}", len(questions) * len(seeds)) as report:
            replies = {
                seed: self._replies(questions, system, directory, seed, functools.partial(_behind, report, n))
                for n, seed in zip(itertools.count(0, len(questions)), seeds)
            }
        self._score(directory, questions, replies, system, details)
        counts = {"items": len(questions) * len(seeds)}
        artifacts.finish(directory, provenance, self.who.inputs, counts)

    def _provenance(
        self, name: str, questions: Sequence[Question], there: Mapping[str, Any]
    ) -> artifacts.Section:
        asked: dict[str, str] | str = artifacts.digests(
            (q.task, [*q.key, q.text, q.target]) for q in questions
        )
        if isinstance(there.get("questions"), str):  # all in one, as it was
            asked = artifacts.digest([[*q.key, q.text, q.target] for q in questions])
        evaluation = artifacts.section(self.config.evaluation, without=LISTS)
        provenance = artifacts.joined(
            {"program": "evaluate", "name": name, "evaluation": evaluation, "questions": asked}
        )
        defaults = dataclasses.asdict(Options())
        given = {
            key: value
            for key, value in dataclasses.asdict(self.options).items()
            if value != defaults[key] and key != "model"  # which is among the inputs
        }
        for key, content in (("classifier", toxicity.fingerprint), ("second", artifacts.file_digest)):
            if key in given:
                given[key] = content(given[key])
        return artifacts.joined(provenance, {"options": given}) if given else provenance

    def _replies(
        self,
        questions: Sequence[Question],
        system: System,
        directory: Path,
        seed: int,
        report: Callable[[int], None],
    ) -> list[Reply]:
        own = self.config.evaluation
        found = evaluation_run.collect_replies(
            questions,
            self._answer(questions, system),
            directory if self.options.samples == 1 else directory / f"seed-{seed}",
            sampling=Sampling(own.temperature, own.top_p, own.max_tokens),
            seed=seed,
            system_message_id=system.id,
            system_text=system.text,
            round_size=self.who.round_size,
            progress=lambda done, total: report(done),
        )
        return [reply for _, reply in found]

    def _answer(self, questions: Sequence[Question], system: System) -> evaluation_run.Answer:
        """How the questions' mode is answered."""
        if questions[0].mode in modes.LIKELIHOOD:
            return answering.by_likelihood(self.who.log_likelihoods, questions, system.text)
        if cue := questions[0].extra.get("second_cue"):
            ledger, second = self.workdir / "ledger.sqlite", self.options.second
            other = evaluate_who.Asked(evaluate_who.read_endpoint(second), ledger) if second else self.who
            return answering.two_stages(self.who.answer, other.answer, cue)
        return self.who.answer

    def _score(
        self,
        directory: Path,
        questions: Sequence[Question],
        replies: dict[int, list[Reply]],
        system: System,
        details: Details | None,
    ) -> None:
        first = questions[0]
        if first.mode not in modes.MODES:
            every = [reply for found in replies.values() for reply in found]
            _write_unscored(directory, list(questions) * len(replies), every, self.options.classifier)
            return
        items = [
            item
            for seed, found in replies.items()
            for item in scoring.score(
                questions, found, seed=seed, mode=first.mode, system_message_id=system.id, details=details
            )
        ]
        reader = registry.BENCHMARKS.get(first.benchmark)
        scores = scoring.summarise(
            items, questions, groups=reader.groups if reader else (), met=self._met(first.benchmark)
        )
        scoring.write(directory, items, scores)
        total, unparsed = cells.of_items(items), scores["groups"]["micro"]["unparsed"]
        log.info(
            "%s: n %s, accuracy %s %% (mean of tasks %.1f), unparsed %.1f %%",
            directory.name, total.size, total, 100 * scores["macro"], 100 * unparsed,
        )  # fmt: skip

    def _met(self, benchmark: str) -> set[str] | None:
        """The questions that queries drawn for training met, dropped ones too; None: not checked."""
        path = self.workdir / "queries" / "contamination.jsonl"
        if self.options.model or not path.is_file():
            return None
        hits = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {hit["document_id"] for hit in hits if hit["benchmark"] == benchmark}


def _behind(report: Callable[[int], None], before: int, done: int) -> None:
    report(before + done)


def _first_of_tasks(questions: Sequence[Question], limit: int) -> Iterator[Question]:
    seen: dict[str, int] = {}
    for question in questions:
        seen[question.task] = seen.get(question.task, 0) + 1
        if not limit or seen[question.task] <= limit:
            yield question


def _write_unscored(
    directory: Path, questions: Sequence[Question], replies: Sequence[Reply], classifier: str
) -> None:
    """The scores of what has no right answer: outcomes and lengths, and toxicity by a classifier."""
    outcomes: dict[str, int] = {}
    for reply in replies:
        outcomes[reply.outcome] = outcomes.get(reply.outcome, 0) + 1
    scores: dict[str, Any] = {
        "benchmark": questions[0].benchmark,
        "mode": questions[0].mode,
        "n": len(replies),
        "outcomes": outcomes,
        "characters": sum(len(reply.text) for reply in replies) / len(replies),
    }
    if classifier and questions[0].mode.startswith("toxigen"):
        classify = toxicity.huggingface_classifier(classifier)
        scores["toxicity"] = toxicity.summarise(questions, replies, classify)
    with artifacts.atomic_write(directory / scoring.SCORES) as file:
        json.dump(scores, file, indent=1, ensure_ascii=False)
        file.write("\n")


def run(config: ExperimentConfig, workdir: Path, options: Options | None = None) -> None:
    options = options or Options()
    evaluator, asked_puzzles = Evaluator(config, workdir, options), test_puzzles(config)
    asked = [  # read before anything is asked: a missing file shows at once
        (name, mode, registry.questions(name, path, mode=mode))
        for name, path in config.given_benchmarks.items()
        for mode in config.evaluation.modes[name]
    ]
    given = system_message(options.system) if options.system else None
    if asked_puzzles:
        questions, details = (
            puzzle_benchmark.questions(asked_puzzles),
            puzzle_benchmark.details(asked_puzzles),
        )
        for system in [given] if given else map(system_message, map(str, config.evaluation.messages)):
            evaluator.evaluate(f"puzzles{system.suffix}", questions, system, details)
    for name, mode, questions in asked:
        system = given or _usual_system(mode)
        evaluator.evaluate(f"{name}-{mode}{system.suffix}", questions, system)


def _usual_system(mode: str) -> System:
    """No system message, except in AGIEval's own form."""
    if mode == "agieval_upstream":
        return System(None, agieval.UPSTREAM_SYSTEM)
    return System(EMPTY_MESSAGE, "")


def _run() -> None:
    def work(config: ExperimentConfig, workdir: Path) -> None:
        given = flags.FLAGS
        options = Options(
            model=given.model,
            system=given.system,
            samples=given.samples,
            limit=given.limit,
            second=given.second_model,
            classifier=given.toxicity_classifier,
        )
        run(config, workdir, options)

    parts = ("queries", "tokenizer", "training", "evaluation", "ledger.sqlite", "logs")
    launch.main(work, words={"run": work}, parts=parts)


def main() -> None:
    if file := options.parsed_by("evaluate", sys.argv[1:]):
        launch.set_up_logging()
        importlib.import_module(f"orca_jax.experiments.{file}").main(sys.argv[2:])
    else:
        _run()


if __name__ == "__main__":
    main()
