"""The model under test: the workdir's student, another student, or a model behind an API.

JAX is imported when a student is opened, so that an API is evaluated without it.
"""

from __future__ import annotations

import functools
import json
import logging
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orca_jax import artifacts, config_check
from orca_jax.config import ExperimentConfig, OpenAIConfig
from orca_jax.evaluation.benchmarks.base import Conversation, EvaluationError
from orca_jax.records import Outcome, Reply, Sampling
from orca_jax.scrubbing import EndpointError
from orca_jax.teachers.collect import collect_all
from orca_jax.teachers.endpoint import Fault, Request
from orca_jax.teachers.ledger import Ledger
from orca_jax.teachers.pool import Pool

if TYPE_CHECKING:
    from orca_jax.serving.local import LocalStudent

log = logging.getLogger(__name__)
ROUND = 4  # times as many questions as are answered at once
IN_FLIGHT = 32
FINAL = (Fault.REQUEST, Fault.TOO_LONG)  # a request that an endpoint refuses so is not sent again


class StudentModel:
    """A student in this process, loaded at its first use: a finished evaluation needs none.

    Attributes:
      name: of its folder among the evaluations; empty for the workdir's own.
      inputs: what its replies depend on, for manifests.
      round_size: conversations that `answer` is best given at a time.
      settings: what its replies depend on too; of the workdir's own student, its training counts them.
    """

    def __init__(
        self,
        load: Callable[[], LocalStudent],
        inputs: dict[str, str],
        name: str,
        batch: int,
        settings: Mapping[str, Any] = types.MappingProxyType({}),
    ):
        self._load, self.inputs, self.name, self.round_size = load, inputs, name, ROUND * batch
        self.settings = settings

    @functools.cached_property
    def student(self) -> LocalStudent:
        return self._load()

    def answer(
        self, conversations: Sequence[Conversation], sampling: Sampling
    ) -> Iterable[tuple[int, Reply]]:
        return self.student.as_finished(conversations, sampling)

    def log_likelihoods(self, asked: Sequence[tuple[Conversation, str]]) -> list[float]:
        return [score.total for score in self.student.log_likelihoods(asked)]


class ApiModel:
    """A model behind an OpenAI-compatible API; every answer is in the ledger, and none is paid for twice."""

    def __init__(self, config: OpenAIConfig, ledger: Path):
        self.config, self._ledger = config, ledger
        self.inputs = {"endpoint": artifacts.digest([config.model, config.base_url, dict(config.parameters)])}
        self.name, self.settings = _file_name(config.model), dict[str, Any]()
        self.round_size = ROUND * IN_FLIGHT

    def answer(
        self, conversations: Sequence[Conversation], sampling: Sampling
    ) -> Iterable[tuple[int, Reply]]:
        requests = [Request(tuple(messages), sampling, 0) for messages in conversations]
        return enumerate(endpoint_replies(self.config, requests, self._ledger))

    def log_likelihoods(self, asked: Sequence[tuple[Conversation, str]]) -> list[float]:
        raise EvaluationError(
            f"{self.config.model} is an endpoint, which gives no log-likelihoods of given texts; evaluate a "
            "student, or leave the modes by likelihood out"
        )


ModelUnderTest = StudentModel | ApiModel


def under_test(config: ExperimentConfig, workdir: Path, given: str) -> ModelUnderTest:
    """The model that `given` names: a JSON file with an endpoint, or a student; empty: the workdir's own.

    Raises:
      ArtifactError: there is no student.
      EndpointError: the file is no endpoint's.
    """
    batch = config.evaluation.batch_size
    if not given:
        fingerprint = artifacts.read_manifest(workdir / "training")["fingerprint"]
        return StudentModel(lambda: load_trained(config, workdir), {"training": fingerprint}, "", batch)
    if given.endswith(".json"):
        return ApiModel(read_endpoint(given), workdir / "ledger.sqlite")
    from orca_jax.serving.local import load_student
    from orca_jax.training import students

    source = students.open_source(given)
    name = f"{_file_name(Path(given).resolve().name)}-{source.fingerprint[:8]}"
    settings = students.run_settings(config, source)
    sizes: dict[str, Any] = {"batch_size": batch, "max_length": config.evaluation.max_length}
    return StudentModel(
        lambda: load_student(source, **settings, **sizes),
        {"student": source.fingerprint},
        name,
        batch,
        settings,
    )


def load_trained(config: ExperimentConfig, workdir: Path) -> LocalStudent:
    """The student of the workdir's newest whole checkpoint."""
    from orca_jax.data import tokenizer
    from orca_jax.serving.local import LocalStudent
    from orca_jax.training import students

    step, params, shape = students.trained(workdir)
    manifest = artifacts.read_manifest(workdir / "training")
    log.info("evaluating the student of step %d", step)
    return LocalStudent(
        params,
        shape,
        tokenizer.load(workdir / "tokenizer"),
        students.as_made(config, manifest).data.layout,
        checkpoint=f"{manifest['fingerprint']}-{step}",
        batch_size=config.evaluation.batch_size,
        max_length=config.evaluation.max_length,
    )


def endpoint_replies(
    config: OpenAIConfig,
    requests: Sequence[Request],
    ledger: Path,
    on_reply: Callable[[Any], None] | None = None,
) -> list[Reply]:
    """The replies to all requests, within the endpoint's limits.

    Raises:
      EvaluationError: a request got no answer, so that running again asks it again.
    """
    from orca_jax.teachers.openai import OpenAIEndpoint  # its client takes a while to import

    pool = Pool(config.model, [(OpenAIEndpoint(config), config.limits)])
    with Ledger(ledger) as opened:
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
