"""What an experiment's config file may say, as dataclasses."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from orca_jax import settings
from orca_jax.student import presets
from orca_jax.student.config import LlamaConfig, LoraConfig
from orca_jax.student.sharding import MeshConfig
from orca_jax.training.curriculum import StageConfig
from orca_jax.training.optimizer import OptimizerConfig
from orca_jax.training.trainer import TrainConfig

TEACHER_KINDS = ("oracle", "file", "student")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """One teacher, and the data set of its traces, which has its name.

    Attributes:
      kind: `oracle` (procedural, see queries.puzzles.oracles), `file` (traces from a file) or `student`
        (one of ours, or a Hugging Face model, asked greedily).
      path: of the file, or of the student: a finished workdir, an imported student or a model folder.
      share: of the queries that it is asked; a smaller share is a part of every greater one.
      max_tokens: of a student's reply; one that is longer does not train.
      brevity, reach, error_rate: the oracle's knobs.
      bare_reply: how the oracle gives an answer alone.
    """

    name: str
    kind: str = "oracle"
    path: str = ""
    share: float = 1.0
    max_tokens: int = 512
    brevity: float = 0.0
    reach: int = 1_000_000
    error_rate: float = 0.0
    bare_reply: str = "{answer}"

    def __post_init__(self) -> None:
        if self.kind not in TEACHER_KINDS:
            raise ValueError(f"teacher {self.name!r}: kind {self.kind!r}; known: {', '.join(TEACHER_KINDS)}")
        if (self.kind == "oracle") == bool(self.path):
            needs = "takes no" if self.path else "needs a"
            raise ValueError(f"teacher {self.name!r}: kind {self.kind!r} {needs} path")
        if self.max_tokens < 1:
            raise ValueError(f"teacher {self.name!r}: max_tokens={self.max_tokens} must be at least 1")
        if not 0 < self.share <= 1:
            raise ValueError(f"teacher {self.name!r}: share={self.share} must be in (0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """From traces to rows. `tokenizer` is a SentencePiece file or a folder with one, or with tokenizer.json.

    Empty: the tokenizer of `student.init`, or without that a new one, trained on the traces. `supervise`
    puts the loss on `all` answers of a conversation, or on the `last` one.
    """

    tokenizer: str = ""
    layout: str = "orca"
    supervise: str = "all"
    row_length: int = 512
    max_segments: int = 32
    overlong: str = "truncate"
    validation_fraction: float = 0.02
    workers: int = 1


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
    """What the student is examined on. `messages` are ids of system messages; temperature 0 is greedy."""

    per_family: int = 100
    difficulties: tuple[int, ...] = (1, 2, 3)
    messages: tuple[int, ...] = (1, 7)
    bbh_modes: tuple[str, ...] = ("orca", "orca_cot")
    max_tokens: int = 256
    max_length: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A whole experiment. `bbh_folder` is examined, and its questions never reach training."""

    name: str
    seed: int = 0
    bbh_folder: str = ""
    compiler_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    puzzles: PuzzlesConfig
    teachers: tuple[TeacherConfig, ...]
    data: DataConfig
    student: StudentConfig
    curriculum: tuple[StageConfig, ...]
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig
    evaluation: EvaluationConfig

    def __post_init__(self) -> None:
        names = [teacher.name for teacher in self.teachers]
        if len(set(names)) < len(names) or "validation" in names:
            raise ValueError(f"teachers need distinct names other than 'validation'; got {', '.join(names)}")
        for stage in self.curriculum:
            unknown = sorted(set(stage.names) - set(names))
            if unknown:
                raise ValueError(
                    f"curriculum stage {stage.name!r} names data set {unknown[0]!r}; "
                    f"the teachers are {', '.join(names)}"
                )


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
    """A dataclass, or a tuple of them, as JSON values, for manifests."""
    if isinstance(part, tuple):
        return [plain(entry) for entry in part]
    return dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part
