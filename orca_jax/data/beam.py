"""The token store's shards on Apache Beam (extra `beam`): the direct runner, Dataflow, Flink."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orca_jax.data.tokens import Job


class BeamError(ValueError):
    """Apache Beam is not installed; the message says how to install it."""


def on_beam(options: Sequence[str], work: Callable[[Job], int], jobs: Sequence[Job]) -> Iterator[int]:
    """Does all jobs in one pipeline; yields their results when it has ended.

    Workers read traces and write shards by path: all of them must see one file system.

    Args:
      options: Beam's, such as `--runner=FlinkRunner`; the direct runner by default.

    Raises:
      BeamError: Beam is not installed.
    """
    try:
        beam: Any = importlib.import_module("apache_beam")
        made: Any = importlib.import_module("apache_beam.options.pipeline_options")
    except ImportError as error:
        raise BeamError("shards on Beam need Apache Beam: pip install 'orca_jax[beam]'") from error
    with beam.Pipeline(options=made.PipelineOptions(list(options))) as pipeline:
        pipeline | beam.Create(list(jobs)) | beam.Reshuffle() | beam.Map(work)
    yield from (len(traces) for _, traces in jobs)
