"""The keys of a set of arms (an ablation): changes of one base config, run under every seed; see `config`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orca_jax.artifacts import plain
from orca_jax.config import ExperimentConfig, complete, load
from orca_jax.config_check import ConfigError, build, check_distinct, check_known

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CHANCE = "chance"  # in a hypothesis, in the place of an arm


@dataclass(frozen=True, kw_only=True)
class ResultConfig:
    """A result of a set."""

    title: str  # in the set's table
    evaluation: str  # the evaluation it is taken from: a folder under evaluation/


@dataclass(frozen=True, kw_only=True)
class ArmConfig:
    """One arm of a set."""

    name: str  # of the arm
    note: str = ""  # what it is, in a few words, for the table
    changes: Mapping[str, object] = field(default_factory=dict)  # of the base; lists are replaced whole
    evaluations: Mapping[str, str] = field(default_factory=dict)  # title of a result to another evaluation

    def evaluation(self, result: ResultConfig) -> str:
        return self.evaluations.get(result.title, result.evaluation)


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """A condition under which all arms of a set are compared, with items of its own."""

    name: str  # of the condition, and its folder
    changes: Mapping[str, object] = field(default_factory=dict)  # of the base
    arms: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # an arm to more changes


@dataclass(frozen=True, kw_only=True)
class HypothesisConfig:
    """A prediction, kept in hypotheses.json when the set begins: an accuracy or a difference, in points."""

    name: str  # a few words, for the table
    arm: str  # whose accuracy it is
    minus: str = ""  # from which this is subtracted: another arm, or `chance`; empty: nothing is
    conditions: tuple[str, ...] = ()  # of the set, their items taken together; empty: all
    less: tuple[str, ...] = ()  # others, whose value is subtracted: an interaction; empty: nothing is
    tasks: tuple[str, ...] = ()  # of the evaluation's items, or how their names begin; empty: all
    difficulties: tuple[int, ...] = ()  # of the evaluation's items; empty: all
    result: str = ""  # title of the result that it is about; empty: the first
    at_least: float | None = None  # points; None: no bound
    at_most: float | None = None  # points; None: no bound

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"hypothesis {self.name!r} predicts nothing; give at_least, at_most or both")
        if self.less and (not self.conditions or set(self.less) & set(self.conditions)):
            raise ValueError(f"hypothesis {self.name!r}: less needs conditions, and others than these")
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"hypothesis {self.name!r}: at_least={low} must be below at_most={high}")

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which the value is predicted, in points; infinite where there is no bound."""
        low, high = self.at_least, self.at_most
        return -math.inf if low is None else low, math.inf if high is None else high

    def nearest(self, points: float) -> float:
        """The bound that a value is nearest to."""
        return min(filter(math.isfinite, self.bounds), key=lambda bound: abs(bound - points))

    def is_about(self, task: str) -> bool:
        """Whether items of a task count; the tasks of a family begin with its name."""
        return not self.tasks or task.startswith(self.tasks)


@dataclass(frozen=True, kw_only=True)
class ArmSetConfig:
    """Arms over one base config, each run under every seed, and under every condition if there are some."""

    name: str  # of the set
    question: str  # that the set answers
    baseline: str  # the arm that every other is compared with
    seeds: tuple[int, ...] = (0, 1, 2)  # of data, student and order; the evaluation is the same under all
    results: tuple[ResultConfig, ...]  # the first is the set's outcome
    base: Mapping[str, object]  # an experiment's config
    arms: tuple[ArmConfig, ...]
    conditions: tuple[ConditionConfig, ...] = ()  # each a set of its own, in a folder of the workdir
    hypotheses: tuple[HypothesisConfig, ...] = ()  # tested together, corrected by Holm for their number

    def __post_init__(self) -> None:
        conditions = [condition.name for condition in self.conditions]
        check_distinct("conditions", conditions)
        names = [arm.name for arm in self.arms]
        check_distinct("arms", names, self.baseline in names, ", the baseline's among them")
        titles = [result.title for result in self.results]
        for arm in self.arms:
            check_known(f"arm {arm.name!r} names the result", arm.evaluations, titles)
            self.config(arm, self.seeds[0])
        for condition in self.conditions:
            check_known(f"condition {condition.name!r} changes arm", condition.arms, names)
            self.under(condition)
        self._check_hypotheses(names, titles)

    def _check_hypotheses(self, arms: Sequence[str], titles: Sequence[str]) -> None:
        names, conditions = [one.name for one in self.hypotheses], [one.name for one in self.conditions]
        check_distinct("hypotheses", names)
        for one in self.hypotheses:
            where = f"hypothesis {one.name!r} names"
            check_known(f"{where} the arm", [one.arm], arms)
            check_known(f"{where} the arm", [one.minus] if one.minus else [], [*arms, CHANCE])
            check_known(f"{where} the condition", (*one.conditions, *one.less), conditions)
            check_known(f"{where} the result", [one.result] if one.result else [], titles)
            for part in self.parts(one.conditions):
                config, evaluation = part.asked(one)
                if evaluation.startswith("puzzles"):
                    families, levels = config.puzzles.families, config.evaluation.difficulties
                    unknown = [
                        task for task in one.tasks if not any(name.startswith(task) for name in families)
                    ]
                    check_known(f"{where} the task", unknown, families)
                    check_known(f"{where} the difficulty", one.difficulties, levels)

    def parts(self, conditions: Sequence[str] | None = None) -> list[ArmSetConfig]:
        """The set under each of these conditions, or all; the set itself where it has none."""
        return [self.under(one) for one in self.chosen(conditions)] or [self]

    def asked(self, one: HypothesisConfig) -> tuple[ExperimentConfig, str]:
        """The first seed's config of a hypothesis' arm, and the evaluation that it is about."""
        arm = next(arm for arm in self.arms if arm.name == one.arm)
        result = next(result for result in self.results if one.result in ("", result.title))
        return self.config(arm, self.seeds[0]), arm.evaluation(result)

    def config(self, arm: ArmConfig, seed: int) -> ExperimentConfig:
        """The experiment that an arm is under a seed.

        Raises:
          ConfigError: base and changes make no config.
        """
        try:
            return load(merged(self.base, {**arm.changes, "name": f"{self.name}-{arm.name}", "seed": seed}))
        except ConfigError as error:
            raise ConfigError(f"arm {arm.name!r}: {error}") from error

    def under(self, condition: ConditionConfig) -> ArmSetConfig:
        """The set under one of its conditions."""
        arms = [
            replace(arm, changes=merged(arm.changes, condition.arms.get(arm.name, {}))) for arm in self.arms
        ]
        base = merged(self.base, condition.changes)
        name = f"{self.name}-{condition.name}"
        return replace(self, name=name, base=base, arms=tuple(arms), conditions=(), hypotheses=())

    def chosen(self, conditions: Sequence[str] | None) -> list[ConditionConfig]:
        """The conditions of these names, or all.

        Raises:
          ValueError: there is no such condition.
        """
        check_known(f"{self.name} has no condition", conditions or (), [one.name for one in self.conditions])
        return [one for one in self.conditions if not conditions or one.name in conditions]

    def runs(self, arms: Sequence[str] | None, seeds: Sequence[str] | None) -> list[tuple[ArmConfig, int]]:
        """Arms and seeds in the order they are run: all arms of a seed first.

        Raises:
          ValueError: there is no such arm or seed.
        """
        check_known(f"{self.name} has no arm", arms or (), [arm.name for arm in self.arms])
        check_known(f"{self.name} has no seed", seeds or (), self.seeds)
        return [
            (arm, seed)
            for seed, arm in itertools.product(self.seeds, self.arms)
            if (not arms or arm.name in arms) and (not seeds or str(seed) in seeds)
        ]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with every entry of `changes`; mappings are merged, everything else is replaced."""
    both = dict(base)
    for key, value in changes.items():
        deeper = isinstance(value, Mapping) and isinstance(both.get(key), Mapping)
        both[key] = merged(both[key], value) if deeper else value
    return both


def load_set(config: ConfigDict | Mapping[str, Any]) -> ArmSetConfig:
    """Raises ConfigError where a key is unknown, missing or wrong, or an arm makes no experiment."""
    return build(ArmSetConfig, config)


def complete_set(config: ConfigDict) -> ConfigDict:
    """The set with every default of its base written out, so that `--config.base.KEY` can be given."""
    config.base = complete(type(config)(config.base))
    return type(config)({**plain(load_set(config)), "base": config.base})
