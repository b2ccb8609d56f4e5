"""What a config file under configs/ablations may say: arms as changes of one base config."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from orca_jax import settings
from orca_jax.experiments.config import ExperimentConfig, complete, load, plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResultConfig:
    """A result of a set: its title, and the evaluation (a folder under evaluation/) it is taken from."""

    title: str
    evaluation: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One arm.

    Attributes:
      note: what it is, in a few words, for the table.
      changes: of the base config, as a mapping like it; lists are replaced as a whole.
      evaluations: title of a result to the evaluation it is taken from, where that differs from the set's.
    """

    name: str
    note: str = ""
    changes: Mapping[str, object] = dataclasses.field(default_factory=dict)
    evaluations: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def evaluation(self, result: ResultConfig) -> str:
        return self.evaluations.get(result.title, result.evaluation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmSetConfig:
    """Arms over one base config.

    Attributes:
      question: what the set asks.
      baseline: the arm that every other is compared with.
      seeds: of data, student and order; the evaluation is the same under all.
      results: of evaluations; the first is the set's outcome, the others are shown beside it.
    """

    name: str
    question: str
    baseline: str
    seeds: tuple[int, ...] = (0, 1, 2)
    results: tuple[ResultConfig, ...]
    base: Mapping[str, object]
    arms: tuple[ArmConfig, ...]

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or self.baseline not in names:
            raise ValueError(f"arms need distinct names, the baseline's among them; got {', '.join(names)}")
        for arm in self.arms:
            titles = [result.title for result in self.results]
            if unknown := sorted(set(arm.evaluations) - set(titles)):
                raise ValueError(
                    f"arm {arm.name!r} names the result {unknown[0]!r}; known: {', '.join(titles)}"
                )
            self.config(arm, self.seeds[0])

    def config(self, arm: ArmConfig, seed: int) -> ExperimentConfig:
        """The experiment that an arm is under a seed.

        Raises:
          SettingsError: base and changes make no config.
        """
        try:
            return load(merged(self.base, {**arm.changes, "name": f"{self.name}-{arm.name}", "seed": seed}))
        except settings.SettingsError as error:
            raise settings.SettingsError(f"arm {arm.name!r}: {error}") from error

    def runs(self, arms: Sequence[str] | None, seeds: Sequence[str] | None) -> list[tuple[ArmConfig, int]]:
        """Arms and seeds in the order they are run: all arms of a seed first.

        Raises:
          ValueError: there is no such arm or seed.
        """
        for kind, asked, known in (("arm", arms, [a.name for a in self.arms]), ("seed", seeds, self.seeds)):
            if unknown := sorted(set(asked or ()) - set(map(str, known))):
                raise ValueError(f"no {kind} {unknown[0]!r} in {self.name}; known: {known}")
        return [
            (arm, seed)
            for seed, arm in itertools.product(self.seeds, self.arms)
            if (not arms or arm.name in arms) and (not seeds or str(seed) in seeds)
        ]


def load_set(config: Any) -> ArmSetConfig:
    """Turns a ConfigDict (or a plain mapping) into dataclasses.

    Raises:
      SettingsError: a key is unknown, missing or ill-typed, or an arm makes no experiment.
    """
    values = json.loads(config.to_json_best_effort()) if hasattr(config, "to_json_best_effort") else config
    return settings.build(ArmSetConfig, values)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with every entry of `changes`; mappings are merged, everything else is replaced."""
    both = dict(base)
    for key, value in changes.items():
        deeper = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if deeper else value
    return both


def complete_set(config: ConfigDict) -> ConfigDict:
    """The set with every default of its base written out, so that `--config.base.KEY` can be given.

    Raises:
      SettingsError: as `load_set`.
    """
    config.base = complete(ConfigDict(config.base))
    values = plain(load_set(config))
    return ConfigDict({**values, "base": config.base, "arms": list(values["arms"])})
