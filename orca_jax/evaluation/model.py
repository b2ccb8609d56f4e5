"""The model under test: the workdir's student, another student, or a model behind an API.

JAX is imported when a student is opened, so that an API is evaluated without it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orca_jax import artifacts, config_check
from orca_jax.config import ExperimentConfig
from orca_jax.config_teachers import OpenAIConfig
from orca_jax.evaluation import parts
from orca_jax.evaluation.benchmarks.base import Conversation, EvaluationError
from orca_jax.evaluation.parts import Part
from orca_jax.records import Outcome, Reply, Sampling
from orca_jax.scrubbing import EndpointError
from orca_jax.teachers.collect import collect_all
from orca_jax.teachers.endpoint import Fault, Request, request_id
from orca_jax.teachers.ledger import Ledger
from orca_jax.teachers.pool import Pool

if TYPE_CHECKING:
    from orca_jax.serving.local import LocalStudent

ROUND = 4  # times as many questions as are answered at once
IN_FLIGHT = 32
LEDGER = "ledger.sqlite"
FINAL = (Fault.REQUEST, Fault.TOO_LONG)  # a request that an endpoint refuses so is not sent again
# Replies to conversations, each with its conversation's index, as they come; the numbers are those that
# conversations of one seed draw by.
Answer = Callable[[Sequence[Conversation], Sampling, Sequence[int]], Iterable[tuple[int, Reply]]]


@dataclasses.dataclass(frozen=True)
class Model:
    """What an evaluation needs of a model."""

    name: str  # of its folder among the evaluations; empty for the workdir's own student
    answer: Answer
    round_size: int  # conversations that `answer` is best given at a time
    inputs: dict[str, str]  # what its replies depend on, for manifests
    # What they depend on too; most of it is counted by the training of the workdir's own student.
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def under_test(config: ExperimentConfig, workdir: Path, given: str, part: Part = parts.WHOLE) -> Model:
    """The model that `given` names: a JSON file with an endpoint, or a student; empty: the workdir's own.

    Raises:
      ArtifactError: there is no student.
      EndpointError: the file is no endpoint's.
    """
    if given.endswith(".json"):
        return api(read_endpoint(given), workdir, part)
    from orca_jax.serving.local import device_groups, load_student
    from orca_jax.training import students

    own = config.evaluation
    # Draws depend on rounds, which are therefore as large with any number of copies.
    copies = 1 if own.temperature else len(device_groups(own.tensor, own.copies))
    round_size = ROUND * own.batch_size * copies
    if not given:
        inputs = {"training": artifacts.read_manifest(workdir / "training")["fingerprint"]}
        answer = student_answer(lambda: load_trained(config, workdir))
        return Model("", answer, round_size, inputs, students.dtype_setting(config))
    source = students.open_source(given)
    settings = students.run_settings(config, source)
    return Model(
        f"{_file_name(Path(given).resolve().name)}-{source.fingerprint[:8]}",
        student_answer(lambda: load_student(source, **settings, **sizes(config))),
        round_size,
        {"student": source.fingerprint},
        settings,
    )


def student_answer(load: Callable[[], LocalStudent]) -> Answer:
    """The answers of a student, which is loaded for the first of them: a finished evaluation needs none."""
    student = functools.cache(load)
    return lambda asked, sampling, numbers: student().as_finished(asked, sampling, numbers=numbers)


def load_trained(config: ExperimentConfig, workdir: Path) -> LocalStudent:
    """The student of the workdir's newest whole checkpoint."""
    from orca_jax.serving.local import load_student
    from orca_jax.training import students

    layout = students.as_made(config, artifacts.read_manifest(workdir / "training")).data.layout
    source = students.open_source(workdir)
    return load_student(source, layout, dtype=config.evaluation.dtype, **sizes(config))


def sizes(config: ExperimentConfig) -> dict[str, Any]:
    """How many replies are decoded at once, how long, and on which devices; see `load_student`."""
    names = ("batch_size", "max_length", "tensor", "copies")
    return {name: getattr(config.evaluation, name) for name in names}


def api(config: OpenAIConfig, workdir: Path, part: Part) -> Model:
    """A model behind an OpenAI-compatible API; every answer is in a ledger, and none is paid for twice.

    The whole has the workdir's, each part one of its own, which the whole takes answers from.
    """
    name = _file_name(config.model)
    of_parts = workdir / "evaluation" / name / LEDGER
    ledger = workdir / LEDGER if part == parts.WHOLE else parts.own(of_parts, part)

    def answer(
        asked: Sequence[Conversation], sampling: Sampling, numbers: Sequence[int]
    ) -> Iterable[tuple[int, Reply]]:
        requests = [Request(one, sampling) for one in asked]
        return enumerate(endpoint_replies(config, requests, ledger, parts.others(of_parts, part)))

    endpoint = artifacts.digest([config.model, config.base_url, dict(config.parameters)])
    return Model(name, answer, ROUND * IN_FLIGHT, {"endpoint": endpoint})


def endpoint_replies(
    config: OpenAIConfig,
    requests: Sequence[Request],
    ledger: Path,
    others: Sequence[Path] = (),
    on_reply: Callable[[Any], None] | None = None,
) -> list[Reply]:
    """The replies to all requests, within the endpoint's limits.

    Args:
      others: further ledgers, whose answers are taken.

    Raises:
      EvaluationError: a request got no answer, so that running again asks it again.
    """
    from orca_jax.teachers.openai import OpenAIEndpoint  # its client takes a while to import

    pool = Pool(config.model, [(OpenAIEndpoint(config), config.limits)])
    keys = [request_id(pool.identity, request) for request in requests]
    with Ledger(ledger) as opened:
        for other in others:
            opened.adopt(other, keys)
        replies = collect_all(pool, requests, opened, concurrency=IN_FLIGHT, on_reply=on_reply)
    failed = [r for r in replies if r.outcome == Outcome.ERROR and r.raw.get("fault") not in FINAL]
    if failed:
        raise EvaluationError(
            f"{config.model}: {len(failed)} of {len(replies)} requests got no answer "
            f"({failed[0].raw.get('error', 'no reason given')}); run again to ask them again"
        )
    return replies


def read_endpoint(path: str | Path) -> OpenAIConfig:
    """An endpoint's settings from a JSON file: the fields of `OpenAIConfig`, `model` among them.

    Raises:
      EndpointError: the file cannot be read or has a field that is not known; names the file.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        return config_check.build(OpenAIConfig, values)
    except (OSError, ValueError) as error:
        raise EndpointError(f"{path}: no endpoint's settings: {error}") from error


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-._" else "-" for c in name)
