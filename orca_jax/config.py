"""Everything that a config may say, a commented line a key; docs/config.md is generated from these comments.

A config file returns a ConfigDict, which `load` turns into an `ExperimentConfig`; queries and teachers are in
`config_teachers`, sets of arms in `config_arms`. Types, ranges and choices are written as annotations and
checked by pydantic in `build`; what must hold between keys is checked by `__post_init__`.
"""

from __future__ import annotations

import re
import typing
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Gt, Interval, MinLen, MultipleOf

from orca_jax import plugins, storage
from orca_jax.artifacts import plain
from orca_jax.config_check import build, check_distinct, check_known
from orca_jax.config_teachers import (
    Amount,
    Count,
    FlanConfig,
    Part,
    Positive,
    PuzzlesConfig,
    Share,
    TeacherConfig,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

MessageId = Annotated[int, Interval(ge=1, le=16)]  # of the paper's system messages
Layout = Annotated[str, plugins.LAYOUTS.beside("", "orca", "chatml", "llama2", "vicuna", "plain", "template")]
Supervise = Literal["all", "last", "everything"]
Preset = Literal[
    "", "llama-7b", "llama-13b", "llama-33b", "llama-65b", "llama2-7b", "llama2-13b", "llama2-70b",
    "llama3-1b", "llama3-3b", "llama3-8b", "llama3-70b", "smollm2-135m", "smollm2-360m", "smollm2-1.7b",
    "smollm3-3b", "qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen2.5-7b", "qwen3-0.6b", "qwen3-1.7b",
    "qwen3-4b", "qwen3-8b", "gemma3-270m", "gemma3-1b", "olmo2-1b", "olmo2-7b",
]  # fmt: skip
Dense = Literal["query", "key", "value", "output", "gate", "up", "down"]
Attention = Literal["auto", "reference", "causal_blocks", "blockwise", "splash", "cudnn"]
Remat = Literal["none", "products", "full"]
DType = Literal["auto", "float32", "bfloat16"]
OptimizerKind = Literal["adamw", "adamw_bf16", "adafactor"]
CurriculumKind = Annotated[str, plugins.CURRICULA.beside("")]
# The modes of each benchmark, see evaluation.scoring; the first one is used where a config names none.
OWN_BENCHMARKS: dict[str, tuple[str, ...]] = {
    "bbh": ("orca", "orca_cot", "robust", "answer_is"),
    "bbeh": ("bbeh",),
    "agieval": ("orca", "orca_cot", "robust"),
    "truthfulqa_mc": ("orca", "orca_cot", "robust"),
    "toxigen": ("toxigen_hate", "toxigen_neutral"),
    "gsm8k": ("orca_cot",),
    "vicuna_prompts": ("open_ended",), "awesome_prompts": ("open_ended",),
    "wizardlm_prompts": ("open_ended",), "own_prompts": ("open_ended",),
}  # fmt: skip
BENCHMARK_MODES: Mapping[str, tuple[str, ...]] = ChainMap(plugins.MODES_OF.entries, OWN_BENCHMARKS)
plugins.BENCHMARKS.beside(*OWN_BENCHMARKS, "puzzles", "judged")
plugins.PARSERS.beside(*dict.fromkeys(mode for modes in OWN_BENCHMARKS.values() for mode in modes))
CHOICES_MODES = ("orca", "orca_cot", "robust")  # of sets of a config's own, with options
AS_IT_STANDS = ("robust",)  # of such without
BLOCK = 256  # rows over which the shares of a curriculum's stage are exact


# Rows and student


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """From traces to rows."""

    # A SentencePiece file, a folder with one or with tokenizer.json, or `hf://OWNER/NAME`; `words`: a new
    # one, of the traces' whole words; empty: the tokenizer of `student.init`, or without that a new one,
    # trained on the traces.
    tokenizer: str = ""
    # How conversations are written, see data.layouts; empty: as `student.init` was trained, else the
    # tokenizer's chat template, else `orca`. A plugin may have more.
    layout: Layout = ""
    supervise: Supervise = "all"  # answers with loss; `everything`: prompts too
    row_length: Positive = 512  # tokens
    max_segments: Positive = 32  # examples a row
    overlong: Literal["truncate", "drop"] = "truncate"  # what becomes of an example longer than a row
    validation_fraction: Share = 0.02  # of the queries, held out of training
    # Whether the examples of a row are kept apart; `leaking`: each sees those packed before it.
    segments: Literal["separated", "leaking"] = "separated"
    top_logprobs: Count = 0  # the teachers' likeliest tokens that token stores keep in each place; 0: none

    # Count in token stores.
    STORED: ClassVar = ("tokenizer", "layout", "supervise", "validation_fraction", "top_logprobs")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Adapters on dense layers."""

    rank: Count = 0  # 0: no adapters
    alpha: Annotated[float, Gt(0)] = 16.0  # they are scaled by alpha / rank
    targets: Annotated[tuple[Dense, ...], MinLen(1)] = typing.get_args(Dense)  # the dense layers
    base_dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights beside adapters, norms left out

    def __post_init__(self) -> None:
        if self.base_dtype != "float32" and not self.rank:
            raise ValueError("lora.base_dtype is of weights that are not trained: set lora.rank too")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a LLaMA decoder, and how it is run."""

    vocab_size: Count  # ids of the tokenizer, control tokens counted; with `init` it may be 0: what both need
    hidden_size: Positive = 128  # width of the residual stream
    intermediate_size: Positive = 352  # of the gated feed-forward layers
    num_layers: Positive = 4  # blocks of attention and feed-forward
    num_heads: Positive = 4  # of queries
    num_kv_heads: Positive = 4  # of keys and values; divides num_heads
    head_dim: Annotated[Positive, MultipleOf(2)] = 32  # even: rotary embedding turns pairs
    tie_embeddings: bool = False  # one matrix for input and output embeddings
    attention: Attention = "auto"  # backend, see student.attention; `auto`: the platform's
    scan_layers: bool = True  # compile one layer and scan over all
    # What the backward pass computes again: `none`, `full` (all of a layer but its input), or `products`
    # (all but the results of its matrix products with weights and of attention).
    remat: Remat = "none"
    lora: LoraConfig = LoraConfig()

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"student.num_kv_heads={self.num_kv_heads} must divide student.num_heads={self.num_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class StudentConfig(Sizes):
    """The student: sizes written here, a preset's, or those of the weights to start from."""

    # Weights to start from: a model's folder, an imported student, a finished workdir, or
    # `hf://OWNER/NAME@REVISION` of the Hugging Face hub.
    init: str = ""
    preset: Preset = ""  # a released shape; with this or `init` the sizes here are not used

    def __post_init__(self) -> None:
        if self.init and self.preset:
            raise ValueError(f"student.init={self.init!r} has a shape already; remove student.preset")
        if self.lora.rank and not self.init:
            raise ValueError("student.lora adapts given weights; name them in student.init")
        if not self.init:
            super().__post_init__()
            if not self.vocab_size:
                raise ValueError("student.vocab_size must be at least 1 without student.init, got 0")


# Training


@dataclass(frozen=True, kw_only=True)
class OnPolicyConfig:
    """Rounds in which the student answers and a teacher goes on where it goes wrong, see docs/training.md."""

    rounds: Positive = 4  # of equal steps; in each, the student answers as it is when the round begins
    questions: Positive = 1000  # a round, drawn from the puzzles that the stage's data set is trained on
    share: Part = 1.0  # of rows from the round's traces; the others are the stage's data set
    temperature: Amount = 1.0  # of the student's replies
    max_tokens: Positive = 256  # of a student's reply


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of the curriculum: which data sets, for how long, at which learning rate."""

    name: str  # of the stage
    kind: CurriculumKind = ""  # a plugin's, which decides shares or learning rate; empty: the keys here do
    # Data set to its weight: rows are drawn in these shares.
    datasets: Annotated[Mapping[str, float], MinLen(1)]
    epochs: Count = 1  # passes over all rows of the data sets; not used where `steps` is given
    steps: Count = 0  # optimizer steps; 0: `epochs`
    learning_rate: float = 1e-3  # the peak, after the warm-up
    warmup_steps: Count = 0  # over which the rate rises in a straight line
    # After the warm-up: `cosine` and `linear` fall to `final_fraction` over all steps, `wsd` (warm-up,
    # stable, decay, arXiv 2404.06395) in a line over the last tenth of them; `constant` does not fall.
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    final_fraction: float = 0.1  # of the peak, to which the rate falls
    reset_optimizer: bool = False  # start the stage with fresh optimizer moments
    # Weights at the stage's end, reached from `datasets` in a straight line; a data set that is left out has
    # weight 0. Empty: `datasets` holds throughout.
    anneal_to: Mapping[str, float] = field(default_factory=dict)
    # Ends the stage after so many validations in a row without a new lowest loss, or evaluations without a
    # new highest accuracy, and at its epochs or steps at the latest, over which the learning rate falls; 0:
    # there.
    until_plateau: Count = 0
    # The loss of held-out traces, see `train.validate_every`, or accuracy, see `train.evaluate_every`.
    plateau_of: Literal["loss", "accuracy"] = "loss"
    skip_spikes: float = 0.0  # skips steps of a gradient norm over so many running means; 0: none
    # Weight of the cross-entropy to the teachers' distributions, which `data.top_logprobs` keeps, beside the
    # one to their tokens, see training.loss; 0: without.
    distill_weight: Amount = 0.0
    distill_temperature: Annotated[float, Gt(0)] = 1.0  # of teacher and student in it
    on_policy: OnPolicyConfig | None = None  # trains on the student's replies, mended by its teacher

    def __post_init__(self) -> None:
        where = f"curriculum stage {self.name!r}"
        if self.on_policy:
            self._check_on_policy(where, self.on_policy)
        if self.skip_spikes and not self.skip_spikes > 1:
            raise ValueError(f"{where}: skip_spikes={self.skip_spikes} must be over 1, or 0 to skip none")
        if not self.steps and not self.epochs:
            raise ValueError(f"{where}: give epochs of at least 1, or steps")
        shares = [*normalized(self.datasets).items(), *normalized(self.anneal_to).items()]
        if low := [name for name, share in shares if share < 1 / BLOCK]:
            raise ValueError(f"{where}: the share of {', '.join(low)} is below 1/{BLOCK}; leave it out")

    def _check_on_policy(self, where: str, own: OnPolicyConfig) -> None:
        refused = ("anneal_to", "until_plateau", "kind", "distill_weight")
        others = [name for name in refused if getattr(self, name)]
        if len(self.names) > 1 or others:
            wrong = ", ".join(others) or "several data sets"
            raise ValueError(f"{where}: on_policy takes one data set, and not {wrong}")
        if not self.steps or self.steps % own.rounds:
            raise ValueError(
                f"{where}: steps={self.steps} must be a multiple of on_policy.rounds={own.rounds}, which "
                "share them equally"
            )
        if min(own.share, 1 - own.share or 1) < 1 / BLOCK:
            raise ValueError(
                f"{where}: on_policy.share={own.share} must be 1, or 1/{BLOCK} away from 0 and 1"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Every data set that the stage draws from, but for rounds on policy."""
        return tuple(dict.fromkeys([*self.datasets, *self.anneal_to]))


def normalized(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares, which add up to 1."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()} if total > 0 else dict(weights)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What makes updates of gradients. The paper states none of these (ORCA, 3.2)."""

    # `adamw` (arXiv 1711.05101); `adamw_bf16`, the same with first moments in bfloat16; `adafactor` (arXiv
    # 1804.04235): second moments are one row and one column a matrix, and there are no first moments.
    kind: OptimizerKind = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)  # decay of first and second moments (adamw)
    epsilon: float = 1e-8  # of adamw
    weight_decay: float = 0.0  # spares norms' scales and biases
    clip_norm: float = 1.0  # bounds the global gradient norm


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the curriculum is run."""

    batch_rows: Positive = 8  # rows an optimizer step, over all devices and accumulation parts
    accumulation: Positive = 1  # parts a batch is computed in, one after the other; divides batch_rows
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters and moments stay float32
    # Of sums of the layers' gradients over positions and devices; not narrower than compute_dtype.
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every: Positive = 100  # steps
    keep: Positive = 2  # checkpoints preserved
    log_every: Positive = 10  # steps
    wandb: str = ""  # project of Weights & Biases that gets the metrics too; empty: none
    validate_every: Count = 0  # steps; 0: only at the end of a stage
    # Steps after which the student answers validation puzzles, as it does at the end of a stage; 0: never.
    evaluate_every: Count = 0
    evaluate_per_family: Positive = 50  # validation puzzles of a family

    NO_NUMBER: ClassVar = ("checkpoint_every", "keep", "log_every", "wandb")
    PLATEAU: ClassVar = ("validate_every",)  # counts where a stage ends at a plateau
    # Count where a stage ends at a plateau of accuracy.
    EVALUATED: ClassVar = ("evaluate_every", "evaluate_per_family")

    def __post_init__(self) -> None:
        if self.batch_rows % self.accumulation:
            raise ValueError(
                f"train.accumulation={self.accumulation} must divide batch_rows={self.batch_rows}"
            )


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the device mesh's axes; -1, at most once, takes the devices that are left."""

    data: int = 1  # copies of the student
    fsdp: int = -1  # parts of parameters, moments and batch
    tensor: int = 1  # parts of each layer's matrices


# Evaluation, and the whole


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the student is evaluated."""

    per_family: Count = 100  # puzzles of a family
    difficulties: tuple[int, ...] = (1, 2, 3)  # of the puzzles
    messages: tuple[MessageId, ...] = (1, 7)  # system messages, each for all puzzles
    # Benchmark to the modes it is evaluated in, see evaluation.scoring; one that is not named: in its first.
    modes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"bbh": ("orca", "orca_cot")})
    max_tokens: Positive = 256  # of a reply
    max_length: Positive = 1024  # tokens of prompt and reply
    temperature: Amount = 0.0  # 0: greedy
    top_p: Part = 1.0  # of the distribution that is drawn from
    seed: int = 0  # of draws
    batch_size: Positive = 64  # replies decoded at once
    # Of weights and products of a student, also of one that is a teacher; `auto`: bfloat16 on TPUs and GPUs,
    # float32 on CPUs. Float32 is computed as such on every platform.
    dtype: DType = "auto"
    tensor: Positive = 1  # devices over which each layer of a student is split
    copies: Count = 0  # of a student, each on `tensor` devices of a host; 0: on all of them, on CPUs one

    LISTS: ClassVar = ("messages", "modes")  # which evaluations there are; each has a manifest of its own
    NO_NUMBER: ClassVar = ("tensor", "copies")  # replies depend on them by rounding alone

    def __post_init__(self) -> None:
        for name, modes in self.modes.items():
            check_known(f"{name} has no mode", modes, BENCHMARK_MODES.get(name, modes))
        every = {name: modes[:1] for name, modes in OWN_BENCHMARKS.items()} | dict(self.modes)
        object.__setattr__(self, "modes", every)


@dataclass(frozen=True, kw_only=True)
class ChoicesConfig:
    """A benchmark of your own; `a.b` is field b in field a, or in each entry of a list a.

    With `options` they are written below the question, in the modes `orca`, `orca_cot` and `robust`. Without,
    the question is asked as it stands in mode `robust`, and answered by one of `labels`, or freely if there
    are none.
    """

    name: str  # of the benchmark, among `evaluation.modes` too
    path: Annotated[str, MinLen(1)]  # a .jsonl, .json, .parquet or .csv, also `hf://datasets/OWNER/NAME/FILE`
    question: Annotated[tuple[str, ...], MinLen(1)]  # fields of the question's text, joined by line breaks
    options: tuple[str, ...] = ()  # the field with the list of options, or a field for each; empty: see above
    # Field of the right option: its label, its number from 0 or its text; empty: the first one is right, and
    # the order is drawn. Without options, the field of the right answer.
    answer: str = ""
    # The field with the options' labels, or the labels; empty: A, B, ... Without options, what is answered.
    labels: tuple[str, ...] = ()
    task: str = ""  # field of the task that a question belongs to; empty: all are one
    share: Part = 1.0  # of the questions, by hash of their text; the others may be trained on

    def __post_init__(self) -> None:
        if not self.options and not self.answer:
            raise ValueError(f"choices {self.name!r}: give options, or answer for questions without them")
        if not self.options and len(self.labels) == 1:
            raise ValueError(
                f"choices {self.name!r}: a question with one label has one answer; give labels or none"
            )
        if not re.fullmatch(r"\w+", self.name) or self.name in (*BENCHMARK_MODES, "puzzles"):
            raise ValueError(
                f"a set of choices is called {self.name!r}: give it a name of letters, digits and _ that no "
                "benchmark has"
            )

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes it may be asked in, the first by default."""
        return CHOICES_MODES if self.options else AS_IT_STANDS


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """A whole experiment."""

    name: str  # of the experiment
    seed: int = 0  # of queries, order, new weights and teachers' draws
    # Files (.py) or modules with names of your own, see docs/extending.md. A path is relative to the config
    # file or to the working folder.
    plugins: tuple[str, ...] = ()
    # Benchmark to its folder or file, also `hf://datasets/OWNER/NAME/FILE`, empty: not at hand; none of its
    # questions reaches training.
    benchmarks: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[ChoicesConfig, ...] = ()
    # Of XLA, for the training step, by name; `auto`: those that are fastest on the platform, and that the XLA
    # at hand knows. A run that goes on keeps what it began with.
    compiler_options: Literal["auto"] | Mapping[str, str] = "auto"
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

    # Of plugins the sources of what is used count, see plugins.provenance.
    NO_NUMBER: ClassVar = ("name", "mesh", "plugins")
    # Count in the inputs of training, part by part in training, or after it.
    BESIDE: ClassVar = (
        "benchmarks", "choices", "puzzles", "flan", "teachers", "data", "student", "train", "evaluation"
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugins", tuple(map(plugins.resolved, self.plugins)))
        own: dict[str, tuple[str, ...]] = {one.name: one.modes for one in self.choices}
        check_distinct("sets of choices", [one.name for one in self.choices])
        check_known("unknown benchmark", self.benchmarks, BENCHMARK_MODES)
        check_known("unknown benchmark", self.evaluation.modes, (*BENCHMARK_MODES, *own))
        for name, modes in own.items():
            check_known(f"{name} has no mode", self.evaluation.modes.get(name, ()), modes)
        own |= {name: BENCHMARK_MODES[name] for name in self.benchmarks if name in plugins.BENCHMARKS.entries}
        first = {name: modes[:1] for name, modes in own.items()}
        evaluation = replace(self.evaluation, modes={**first, **self.evaluation.modes})
        object.__setattr__(self, "evaluation", evaluation)
        every = dict.fromkeys(OWN_BENCHMARKS, "") | dict(self.benchmarks)
        object.__setattr__(self, "benchmarks", every)
        names = [teacher.name for teacher in self.teachers]
        check_distinct("teachers", names, "validation" not in names, " other than 'validation'")
        if self.flan and len(self.asked_shares) > 1:
            raise ValueError(
                "of FLAN's draw one part is marked (the paper's FLAN-1M), so teachers asked less than "
                f"all need one share; got {', '.join(map(str, sorted(self.asked_shares)))}"
            )
        for stage in self.curriculum:
            check_known(f"curriculum stage {stage.name!r} names data set", stage.names, names)
            if stage.on_policy:
                teacher = self.teachers[names.index(stage.names[0])]
                teacher.check_continues(f"curriculum stage {stage.name!r} is on policy", self.hardest)
        if not self.data.top_logprobs:
            needing = [f"teacher {one.name!r} has a scorer" for one in self.teachers if one.scorer]
            stages = [one for one in self.curriculum if one.distill_weight]
            needing += [f"curriculum stage {one.name!r} has a distill_weight" for one in stages]
            if needing:
                raise ValueError(f"{needing[0]}: set data.top_logprobs, the likeliest tokens that are kept")
        if self.train.evaluate_every and not (self.puzzles.families and self.data.validation_fraction):
            raise ValueError(
                "train.evaluate_every asks the puzzles that data.validation_fraction holds out: set "
                "puzzles.families and data.validation_fraction, or train.evaluate_every=0"
            )

    @property
    def hardest(self) -> int:
        """The greatest difficulty of the training puzzles; 0: there are none."""
        return max(self.puzzles.difficulties, default=0) if self.puzzles.families else 0

    @property
    def asked_shares(self) -> set[float]:
        """The shares below 1 of teachers that are asked queries."""
        return {teacher.share for teacher in self.teachers if teacher.kind != "file" and teacher.share < 1}

    @property
    def benchmark_paths(self) -> dict[str, str]:
        """The benchmarks that are at hand, with their folder or file."""
        own = {one.name: one.path for one in self.choices}
        return {name: path for name, path in self.benchmarks.items() if path} | own

    @property
    def given_benchmarks(self) -> dict[str, str | ChoicesConfig]:
        """The benchmarks that are at hand, with a local copy of their folder or file."""
        local = {name: storage.local(path) for name, path in self.benchmark_paths.items()}
        return {**local, **{one.name: replace(one, path=local[one.name]) for one in self.choices}}


# From a config file to dataclasses, and back


def load(config: ConfigDict | Mapping[str, Any]) -> ExperimentConfig:
    """Imports the config's plugins. Raises ConfigError where one, or a key, is unknown, missing or wrong."""
    listed = config.get("plugins", ())
    plugins.load(one for one in (listed if isinstance(listed, list | tuple) else ()) if isinstance(one, str))
    return build(ExperimentConfig, config)


def complete(config: ConfigDict) -> ConfigDict:
    """The config with every default written out, so that each key can be overridden on a command line."""
    return type(config)(plain(load(config)))
