"""What an experiment's config file may say, as dataclasses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from orca_jax import files, settings, storage
from orca_jax.evaluation.benchmarks import registry
from orca_jax.queries import flan, quality, sampling, system_messages
from orca_jax.queries.contamination import Settings
from orca_jax.student import presets
from orca_jax.student.config import LlamaConfig, LoraConfig, MeshConfig
from orca_jax.teachers.api_config import ApiConfig
from orca_jax.training.config import OptimizerConfig, TrainConfig
from orca_jax.training.curriculum import StageConfig

TEACHER_KINDS = ("oracle", "file", "student", "api", "targets", "rationales")
SEGMENTS = ("separated", "leaking")
KINDS_WITHOUT_PATH = ("oracle", "api", "targets", "rationales")


def _check_messages(where: str, ids: Iterable[int | str]) -> None:
    """Raises ValueError for an id, or the text of one, that is none of the 16 messages'."""
    known = list(map(str, system_messages.all_messages()))
    if unknown := [given for given in ids if str(given) not in known]:
        raise ValueError(f"{where}: {unknown[0]!r} is no system message; they are {known[0]} to {known[-1]}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PuzzlesConfig:
    """Which puzzles are asked.

    Attributes:
      families, difficulties: of the training queries.
      per_family: training queries a family.
      messages: system message id (as text) to its share of the queries; ids for multiple choice only
        are drawn where the puzzle has options.
    """

    families: tuple[str, ...] = ()
    difficulties: tuple[int, ...] = (1, 2, 3)
    per_family: int = 1000
    messages: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"1": 1.0, "7": 1.0})

    def __post_init__(self) -> None:
        _check_messages("messages", self.messages)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlanConfig:
    """One draw of queries from files of FLAN-v2's kinds.

    Attributes:
      sources: kind of file (see queries.flan.READERS) to a path or pattern ("cot/*.tsv"), empty for none.
      scale: of the quotas: 0.01 is the same mixture at a hundredth of the size.
      cot, niv2_per_task, flan2021, t0: the paper's quotas, see queries.sampling.Quotas.
      malformed: the share of a file's rows that may be malformed.
      messages: a file of system messages of one's own; empty: the paper's 16 in its shares.
      contamination: `drop` or `keep` queries that meet a benchmark's text; they are listed in both cases.
      coverage, max_documents: when a query meets one, see queries.contamination.Settings.
      near_duplicates: similarity from which a query is left out as the near duplicate of another; 0: none.
    """

    sources: Mapping[str, str]
    scale: float = 1.0
    cot: float = 1.0
    niv2_per_task: int = 300
    flan2021: int = 2_500_000
    t0: int = 2_000_000
    malformed: float = flan.MALFORMED
    messages: str = ""
    contamination: str = "drop"
    coverage: float = 0.4
    max_documents: int = 5
    near_duplicates: float = 0.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.sources) - set(flan.READERS))
        if unknown:
            raise ValueError(f"unknown kind of FLAN file {unknown[0]!r}; known: {', '.join(flan.READERS)}")
        object.__setattr__(self, "sources", {kind: self.sources.get(kind, "") for kind in flan.READERS})
        if not 0 <= self.near_duplicates <= 1:
            raise ValueError(f"near_duplicates={self.near_duplicates} is a similarity from 0 to 1")
        _ = self.settings, self.quotas(1.0)  # which raise for impossible values

    @property
    def settings(self) -> Settings:
        return Settings(self.coverage, self.max_documents, self.contamination)

    def quotas(self, expert: float) -> sampling.Quotas:
        """How many queries are drawn, with the share that is marked for the second teacher."""
        whole = sampling.Quotas(self.cot, self.niv2_per_task, self.flan2021, self.t0, expert)
        return whole.scaled(self.scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """One teacher, and the data set of its traces, which has its name.

    Attributes:
      kind: `oracle` (procedural, see queries.puzzles.oracles), `file` (traces from a file), `student` (one
        of ours, or a Hugging Face model, asked greedily), `targets` or `rationales` (the answers that FLAN's
        files give themselves, the second with people's reasons before them; see queries.recorded), or `api`
        (a model behind an API).
      path: of the file, or of the student: a finished workdir, an imported student or a model folder.
      share: of the queries that it is asked; a smaller share is a part of every greater one.
      samples: replies a query, of an oracle; a model behind an API has `api.samples`.
      filters: which traces are not trained on, by what is wrong with them, see queries.quality.
      max_tokens: of a student's or an API's reply; one that is longer does not train.
      api: how a model behind an API is asked, see teachers.api_config.
      message: id of the system message under which all its queries are asked; 0: each query's own.
      shown: id of the system message that stands in its traces instead, for a student that shall not see how
        the teacher was asked (Orca 2's prompt erasing, arXiv 2311.11045); 0: the one it was asked under.
      shots: solved examples that its traces show before the question, see data.few_shot; the teacher itself
        is asked without them.
      brevity, reach, error_rate: the oracle's knobs.
      bare_reply: how the oracle gives an answer alone.
      malformed: the share of a file's rows, and of traces in the layout, that may be that; they are left out.
      join_turns: of a file's conversations, consecutive turns of one role become one.
    """

    name: str
    kind: str = "oracle"
    path: str = ""
    share: float = 1.0
    samples: int = 1
    filters: tuple[str, ...] = ()
    max_tokens: int = 512
    api: ApiConfig | None = None
    message: int = 0
    shown: int = 0
    shots: int = 0
    brevity: float = 0.0
    reach: int = 1_000_000
    error_rate: float = 0.0
    bare_reply: str = "{answer}"
    malformed: float = files.MALFORMED
    join_turns: bool = False

    def __post_init__(self) -> None:
        if self.kind not in TEACHER_KINDS:
            raise ValueError(f"teacher {self.name!r}: kind {self.kind!r}; known: {', '.join(TEACHER_KINDS)}")
        if (self.kind in KINDS_WITHOUT_PATH) == bool(self.path):
            needs = "takes no" if self.path else "needs a"
            raise ValueError(f"teacher {self.name!r}: kind {self.kind!r} {needs} path")
        if (self.kind == "api") != (self.api is not None):
            needs = "takes no" if self.api else "needs"
            raise ValueError(f"teacher {self.name!r}: kind {self.kind!r} {needs} `api` settings")
        if self.max_tokens < 1:
            raise ValueError(f"teacher {self.name!r}: max_tokens={self.max_tokens} must be at least 1")
        for name in ("message", "shown"):
            if number := getattr(self, name):
                _check_messages(f"teacher {self.name!r}: {name}", [number])
        if not 0 < self.share <= 1:
            raise ValueError(f"teacher {self.name!r}: share={self.share} must be in (0, 1]")
        if not 0 <= self.malformed <= 1:
            raise ValueError(f"teacher {self.name!r}: malformed={self.malformed} must be from 0 to 1")
        if self.shots < 0:
            raise ValueError(f"teacher {self.name!r}: shots={self.shots} must be 0 or more")
        quality.check(self.filters)
        self._check_samples()

    def _check_samples(self) -> None:
        if self.samples < 1 or (self.samples > 1 and self.kind != "oracle"):
            more = "set api.samples" if self.api else "only an oracle's may be more"
            raise ValueError(f"teacher {self.name!r}: samples={self.samples} must be 1; {more}")
        voted = [name for name in self.filters if name in quality.VOTED]
        if voted and self.kind != "file" and self.asked < 2:
            raise ValueError(f"teacher {self.name!r}: filter {voted[0]!r} needs several samples a query")

    @property
    def asked(self) -> int:
        """Replies a query."""
        return self.api.samples if self.api else self.samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """From traces to rows. `tokenizer` is a SentencePiece file or a folder with one, or with tokenizer.json.

    Empty: the tokenizer of `student.init`, or without that a new one, trained on the traces. `layout` is one
    of data.layouts; empty: the one that `student.init` was trained in, else the tokenizer's chat template,
    else `orca`. `supervise` puts the loss on `all` answers of a conversation, on the `last` one, or on
    `everything`, prompts too. A row's `segments` are `separated`, or `leaking`: an example sees those packed
    before it. Both last ones are for ablations.
    """

    tokenizer: str = ""
    layout: str = ""
    supervise: str = "all"
    row_length: int = 512
    max_segments: int = 32
    overlong: str = "truncate"
    validation_fraction: float = 0.02
    segments: str = "separated"

    def __post_init__(self) -> None:
        if self.segments not in SEGMENTS:
            raise ValueError(f"segments={self.segments!r}; known: {', '.join(SEGMENTS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The student: sizes written here, a preset's, or those of weights to start from.

    Attributes:
      init: weights to start from: a Hugging Face model's folder, an imported one, or a finished workdir.
      preset: a released shape, see student.presets. With either of these the sizes here are not used.
      vocab_size: ids of the tokenizer, control tokens counted; with `init` it may be 0: what both need.
    """

    init: str = ""
    preset: str = ""
    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 352
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = 32
    tie_embeddings: bool = False
    attention: str = "auto"
    scan_layers: bool = True
    remat: str = "none"
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        if self.init and self.preset:
            raise ValueError(f"student.init={self.init!r} has a shape already; remove student.preset")
        if self.lora.rank and not self.init:
            raise ValueError("student.lora adapts given weights; name them in student.init")
        if not self.init:
            self.shape(self.vocab_size)

    def shape(self, vocab_size: int, of: LlamaConfig | None = None) -> LlamaConfig:
        """The whole config for so many ids: of the given weights, of the preset, or as written here.

        Raises:
          ValueError: the sizes do not fit one another.
        """
        here = {"vocab_size": vocab_size, **{name: getattr(self, name) for name in RUNNING}}
        known = of or (presets.preset(self.preset) if self.preset else None)
        if known:
            return dataclasses.replace(known, **here)
        sizes = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in NO_SHAPE}
        return LlamaConfig(**{**sizes, **here})


RUNNING = ("attention", "scan_layers", "remat", "lora")  # how a student is run, whatever its weights
NO_SHAPE = ("init", "preset")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the student is evaluated; temperature 0 is greedy.

    Attributes:
      per_family, difficulties: of the puzzles.
      messages: ids of the system messages that the puzzles are asked under.
      modes: benchmark to the modes in which it is asked and scored (evaluation.modes); one that is not
        named is asked in its first.
    """

    per_family: int = 100
    difficulties: tuple[int, ...] = (1, 2, 3)
    messages: tuple[int, ...] = (1, 7)
    modes: Mapping[str, tuple[str, ...]] = dataclasses.field(
        default_factory=lambda: {"bbh": ("orca", "orca_cot")}
    )
    max_tokens: int = 256
    max_length: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check_messages("messages", self.messages)
        every = {name: reader.modes[:1] for name, reader in registry.BENCHMARKS.items()} | dict(self.modes)
        for name, modes in self.modes.items():
            known = registry.BENCHMARKS[name].modes if name in registry.BENCHMARKS else modes
            if unknown := sorted(set(modes) - set(known)):
                raise ValueError(f"{name} has no mode {unknown[0]!r}; its modes: {', '.join(known)}")
        object.__setattr__(self, "modes", every)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A whole experiment.

    Attributes:
      benchmarks: name (see evaluation.benchmarks.registry) to its folder or file, empty where it is not at
        hand; each is evaluated in its `evaluation.modes`, and none of its questions reaches training.
    """

    name: str
    seed: int = 0
    benchmarks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    puzzles: PuzzlesConfig
    flan: tuple[FlanConfig, ...] = ()
    teachers: tuple[TeacherConfig, ...]
    data: DataConfig
    student: StudentConfig
    curriculum: tuple[StageConfig, ...]
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig
    evaluation: EvaluationConfig

    def __post_init__(self) -> None:
        every = {name: self.benchmarks.get(name, "") for name in registry.BENCHMARKS}
        unknown = sorted({*self.benchmarks, *self.evaluation.modes} - set(every))
        if unknown:
            raise ValueError(f"unknown benchmark {unknown[0]!r}; known: {', '.join(every)}")
        object.__setattr__(self, "benchmarks", every)
        names = [teacher.name for teacher in self.teachers]
        if len(set(names)) < len(names) or "validation" in names:
            raise ValueError(f"teachers need distinct names other than 'validation'; got {', '.join(names)}")
        if self.flan and len(self.asked_shares) > 1:
            raise ValueError(
                "of FLAN's draw one part is marked (the paper's FLAN-1M), so teachers asked less than "
                f"all need one share; got {', '.join(map(str, sorted(self.asked_shares)))}"
            )
        for stage in self.curriculum:
            unknown = sorted(set(stage.names) - set(names))
            if unknown:
                raise ValueError(
                    f"curriculum stage {stage.name!r} names data set {unknown[0]!r}; "
                    f"the teachers are {', '.join(names)}"
                )

    @property
    def asked_shares(self) -> set[float]:
        """The shares below 1 of teachers that are asked queries."""
        return {teacher.share for teacher in self.teachers if teacher.kind != "file" and teacher.share < 1}

    @property
    def given_benchmarks(self) -> dict[str, str]:
        """The benchmarks that are at hand, with their folder or file, or a local copy of it."""
        return {name: storage.local(path) for name, path in self.benchmarks.items() if path}


def complete(config: ConfigDict) -> ConfigDict:
    """The config with every default written out, so that each key can be overridden on a command line.

    Raises:
      SettingsError: as `load`.
    """
    return ConfigDict(_with_lists(plain(load(config))))


def _with_lists(value: Any) -> Any:
    """Tuples of mappings as lists, which alone ConfigDict makes overridable."""
    if isinstance(value, Mapping):
        return {key: _with_lists(entry) for key, entry in value.items()}
    if isinstance(value, tuple) and value and isinstance(value[0], Mapping):
        return [_with_lists(entry) for entry in value]
    return value


def load(config: Any) -> ExperimentConfig:
    """Turns a ConfigDict (or a plain mapping) into dataclasses.

    Raises:
      SettingsError: a key is unknown, missing or ill-typed.
    """
    values = json.loads(config.to_json_best_effort()) if hasattr(config, "to_json_best_effort") else config
    return settings.build(ExperimentConfig, values)


def plain(part: Any) -> Any:
    """A dataclass, or a tuple of them, as JSON values."""
    if isinstance(part, tuple):
        return [plain(entry) for entry in part]
    return settings.section(part) if dataclasses.is_dataclass(part) else part
