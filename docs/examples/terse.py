"""A teacher: gives the target of each query in one sentence."""

from collections.abc import Iterable, Sequence

from orca_jax import plugins
from orca_jax.config import ExperimentConfig
from orca_jax.config_teachers import TeacherConfig
from orca_jax.records import Message, Outcome, Query, Reply, Sampling, Usage


class Terse:
    """An endpoint: one that asks a model elsewhere awaits its answer in `reply`."""

    def __init__(self, queries: Iterable[Query]):
        self.targets = {query.text: query.target or "" for query in queries}

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """Answers the last message."""
        text = f"Tersely: {self.targets[messages[-1].content]}"
        return Reply(Outcome.OK, text, Usage(len(messages[-1].content.split()), len(text.split())))


def make(config: ExperimentConfig, teacher: TeacherConfig, queries: Iterable[Query]) -> Terse:
    """Called once a collection."""
    return Terse(queries)


plugins.teacher("terse", make)
