"""Everything that a config may say, a commented line a key; docs/config.md is generated from this file.

A config file returns a ConfigDict, which `load` turns into an `ExperimentConfig`, and `load_set` into an
`ArmSetConfig`. Types, ranges and choices are written as annotations and checked by pydantic in `build`; what
must hold between keys is checked by `__post_init__`.
"""

from __future__ import annotations

import itertools
import math
import re
import typing
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, MinLen, MultipleOf

from orca_jax import files, plugins, storage
from orca_jax.artifacts import plain
from orca_jax.config_check import ConfigError, build, check_url
from orca_jax.records import Sampling, Usage

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Amount = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Part = Annotated[float, Interval(gt=0, le=1)]  # a share above 0
MessageId = Annotated[int, Interval(ge=1, le=16)]  # of the paper's system messages
OtherMessage = Annotated[int, Interval(ge=0, le=16)]
Message = Literal[
    "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16"
]  # fmt: skip
FlanKind = Literal["submix", "cot", "niv2", "t0", "raw"]
Filter = Literal[
    "duplicate", "near_duplicate", "contaminated", "refusal", "self_identification", "truncated",
    "repetitive", "disagrees", "unchecked", "missteps", "outvoted", "spare", "later",
]  # fmt: skip
VOTED = ("outvoted", "spare")  # filters that count the samples of a query that say the same
COMPARED = (*VOTED, "later")  # filters that compare the samples of a query
TeacherKind = Annotated[
    str, plugins.TEACHERS.beside("oracle", "file", "student", "api", "targets", "rationales")
]
TraceStyle = Literal["", "restate", "changes", "pointer", "bare"]
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
CHANCE = "chance"  # in a hypothesis, in the place of an arm
BLOCK = 256  # rows over which the shares of a curriculum's stage are exact


def _check_known(what: str, given: Iterable[object], known: Iterable[object]) -> None:
    if unknown := sorted(set(map(str, given)) - set(map(str, known))):
        raise ValueError(f"{what} {unknown[0]!r}; known: {', '.join(map(str, known))}")


# Queries and teachers


@dataclass(frozen=True, kw_only=True)
class PuzzlesConfig:
    """Procedural puzzles for training."""

    families: tuple[str, ...] = ()  # of puzzles, see queries.puzzles; empty: none
    difficulties: tuple[int, ...] = (1, 2, 3)  # of the puzzles, drawn evenly
    per_family: Count = 1000  # queries of a family
    # System message id to its share of the queries; ids for multiple choice only where a puzzle has options.
    messages: Mapping[Message, float] = field(default_factory=lambda: {"1": 1.0, "7": 1.0})


@dataclass(frozen=True, kw_only=True)
class FlanConfig:
    """One draw of queries from files of FLAN-v2."""

    sources: Mapping[FlanKind, str]  # kind of file to a path or pattern ("cot/*.tsv"); empty: none
    scale: Annotated[float, Gt(0)] = 1.0  # of the quotas: 0.01 is the same mixture at a hundredth
    cot: Share = 1.0  # share of the CoT queries
    niv2_per_task: Count = 300  # queries of a Super-NaturalInstructions task
    flan2021: Count = 2_500_000  # queries, drawn by the paper's Algorithm 1
    t0: Count = 2_000_000  # queries, drawn by the paper's Algorithm 1
    malformed: Share = 0.01  # share of a file's rows that may be malformed; they are left out
    messages: str = ""  # file of system messages; empty: the paper's 16 in its shares
    contamination: Literal["drop", "keep"] = "drop"  # queries that meet a benchmark's text
    coverage: Part = 0.4  # part of a benchmark's text that shared 8-grams must cover to count
    max_documents: Positive = 5  # a run of words in more of the benchmarks' texts does not count
    near_duplicates: Share = 0.0  # similarity from which a query is a near duplicate and left out; 0: none is

    def __post_init__(self) -> None:
        every = dict.fromkeys(typing.get_args(FlanKind), "") | dict(self.sources)
        object.__setattr__(self, "sources", every)


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars a thousand tokens."""

    prompt: Amount = 0.0  # of a prompt
    completion: Amount = 0.0  # of a completion

    def cost(self, usage: Usage) -> float:
        """US dollars."""
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1000

    def times(self, factor: float) -> Price:
        return Price(prompt=self.prompt * factor, completion=self.completion * factor)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an endpoint allows in a minute. No more requests than given here are sent in any minute."""

    requests: Count = 0  # a minute; 0: as the server's headers tell
    tokens: Count = 0  # a minute; 0: as the server's headers tell

    @classmethod
    def together(cls, requests: Sequence[float], tokens: Sequence[float]) -> Limits:
        """Of several endpoints; 0 where one of them is not known."""
        most, most_tokens = (round(sum(limits)) if all(limits) else 0 for limits in (requests, tokens))
        return cls(requests=most, tokens=most_tokens)


@dataclass(frozen=True, kw_only=True)
class OpenAIConfig:
    """One endpoint of an OpenAI-compatible API. The key is named and never written here."""

    model: Annotated[str, MinLen(1)]  # what the server calls the model; on Azure the deployment's name
    base_url: str = "https://api.openai.com/v1"  # with `/v1`; on Azure `https://NAME.openai.azure.com`
    api_version: str = ""  # Azure's, for example `2024-06-01`; empty for all others
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the key; empty: the server needs none
    limits: Limits = field(default_factory=Limits)
    timeout: Annotated[float, Gt(0)] = 600.0  # seconds for a request, to the last byte of its answer
    limit_name: str = "max_tokens"  # `max_completion_tokens` for models that do not know `max_tokens`
    parameters: Mapping[str, object] = field(default_factory=dict)  # more of the request's JSON; None removes
    largest: Positive = 8 * 2**20  # bytes of an answer beyond which it is not read
    stream: bool = False  # answers come in pieces, so that no proxy closes a connection that is silent

    # Replies do not depend on these; the model counts by the teacher's `name`.
    NO_NUMBER: ClassVar = (
        "model", "base_url", "api_version", "key_variable", "limits", "timeout", "limit_name", "largest",
        "stream",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.key_variable and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_variable):
            # The text itself may be a key, so it is not shown.
            raise ValueError(
                f"key_variable of {self.model!r} is no variable's name; put the key into the environment, "
                "and the variable's name, for example OPENAI_API_KEY, here"
            )
        check_url(self.base_url, bool(self.key_variable))


@dataclass(frozen=True, kw_only=True)
class ApiConfig:
    """A model behind an API: how it is reached, how replies are drawn, and what that may cost."""

    endpoints: Annotated[tuple[OpenAIConfig, ...], MinLen(1)]  # of the one model; they share the work
    identity: str = ""  # the model's name in the ledger; empty: the first endpoint's `model`
    temperature: Amount = 0.7  # of a reply, as in the paper
    top_p: Part = 0.95  # of a reply, as in the paper
    stop: tuple[str, ...] = ()  # texts that end a reply
    top_logprobs: Annotated[int, Interval(ge=0, le=20)] = 0  # alternatives a token that are kept
    samples: Positive = 1  # replies a query
    price: Price = field(default_factory=Price)
    budget_money: Amount = 0.0  # US dollars that the model may cost, all in the ledger together; 0: no cap
    budget_tokens: Count = 0  # tokens that the model may use, all in the ledger together; 0: no cap
    concurrency: Positive = 64  # requests in flight
    retries: Count = 6  # of a failed request
    batch: bool = False  # through the Batch API of the one endpoint, at half the price
    batch_requests: Positive = 50_000  # requests a file; the budget must hold the most that a file can cost
    batch_tokens: Count = 0  # prompt tokens that its queue of batches takes, for the estimate; 0: not known
    lengths: Literal["chatgpt", "gpt-4"] = "chatgpt"  # whose reply lengths the estimate takes
    ledger: str = ""  # a ledger that several workdirs share; empty: the workdir's own

    # Replies do not depend on these; the model counts by its `name`, `parameters` of the endpoints apart.
    NO_NUMBER: ClassVar = (
        "endpoints", "identity", "price", "budget_money", "budget_tokens", "concurrency", "retries", "batch",
        "batch_requests", "batch_tokens", "lengths", "ledger",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.batch and len(self.endpoints) > 1:
            raise ValueError("batch goes to one endpoint; leave one in endpoints")
        if self.batch and self.endpoints[0].stream:
            raise ValueError("batch takes no stream; leave it out of the endpoint")

    @property
    def name(self) -> str:
        """The model as the ledger calls it."""
        return self.identity or self.endpoints[0].model

    @property
    def limits(self) -> Limits:
        """Of all endpoints together, a minute; 0 where one of them is not known."""
        every = [one.limits for one in self.endpoints]
        return Limits.together([one.requests for one in every], [one.tokens for one in every])

    def sampling(self, max_tokens: int) -> Sampling:
        """How a reply of at most so many tokens is drawn."""
        return Sampling(self.temperature, self.top_p, max_tokens, self.stop, top_logprobs=self.top_logprobs)


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Columns of a file with several teachers' answers beside each question, whose hash is a trace's id."""

    question: str = "question"  # its text
    answer: Annotated[str, MinLen(1)]  # this teacher's answer; where it is null or empty there is none
    target: str = ""  # the known answer, which the filters `disagrees` and `unchecked` compare; empty: none
    task: str = ""  # the task that the question belongs to; empty: none
    score: str = ""  # the score of this teacher's answer, a number; empty: none
    min_score: float | None = None  # answers of a lower score, or of none, are left out; None: all are kept

    def __post_init__(self) -> None:
        if self.min_score is not None and not self.score:
            raise ValueError(
                f"columns.min_score={self.min_score} needs columns.score, the column it is about"
            )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """One teacher, and the data set of its traces, which has its name."""

    name: str  # of the teacher and its data set
    # `oracle` (procedural, see queries.puzzles.oracles), `file` (traces from a file), `student` (a finished
    # workdir, an imported student or a model's folder, decoded greedily), `api` (a model behind an API),
    # `targets` or `rationales` (FLAN's own answers, the second with people's reasons before them), or a
    # plugin's.
    kind: TeacherKind = "oracle"
    path: str = ""  # of the file (also `hf://datasets/OWNER/NAME/FILE`) or the student; what a plugin wants
    share: Part = 1.0  # of the queries; a smaller share is a part of every greater one
    samples: Positive = 1  # replies a query, of an oracle or a plugin; of an API see `api.samples`
    filters: tuple[Filter, ...] = ()  # flags of traces that are not trained on, see queries.quality
    max_tokens: Positive = 512  # of a student's or an API's reply; a longer one does not train
    api: ApiConfig | None = None  # of kind `api`
    message: OtherMessage = 0  # system message of all its queries; 0: each query's own
    # System message that its traces show instead, for a student that shall not see how the teacher was
    # instructed (Orca 2's prompt erasing, arXiv 2311.11045); 0: the same one.
    shown: OtherMessage = 0
    shots: Count = 0  # solved examples that its traces show before the question, see data.traces
    # A student or model's folder, with the student's tokenizer, that gives the `data.top_logprobs` likeliest
    # tokens in the place of each supervised one of the traces; empty: those that the traces came with.
    scorer: str = ""
    brevity: float = 0.0  # of an oracle: share of explanations that are left short
    reach: int = 1_000_000  # of an oracle: the hardest puzzle that it solves
    error_rate: float = 0.0  # of an oracle: share of wrong answers
    bare_reply: str = "{answer}"  # of an oracle: how it gives an answer alone
    # Of an oracle: the form of its steps, see queries.puzzles.base; `bare`: none. Empty, or of a family that
    # lacks it: the family's usual one.
    style: TraceStyle = ""
    # Of an oracle: the steps before its answer; `placebo`: another puzzle's, `filler`: as many dots as words.
    steps: Literal["own", "placebo", "filler"] = "own"
    malformed: Share = files.MALFORMED  # share of rows, and of traces in the layout, that may be; left out
    join_turns: bool = False  # of a file: consecutive turns of one role become one
    columns: ColumnsConfig | None = (
        None  # of a file with several teachers' answers; None: one teacher's traces
    )

    NO_NUMBER: ClassVar = ("malformed",)  # too many are an error, and all are left out
    LATER: ClassVar = ("filters", "shots", "scorer")  # count in what is made of the traces

    def __post_init__(self) -> None:
        where = f"teacher {self.name!r}"
        of_plugin = self.kind in plugins.TEACHERS.entries
        if not of_plugin and (self.kind in ("file", "student")) != bool(self.path):
            raise ValueError(f"{where}: kind {self.kind!r} {'takes no' if self.path else 'needs a'} path")
        if self.columns and self.kind != "file":
            raise ValueError(f"{where}: kind {self.kind!r} takes no columns; a file does")
        if (self.kind == "api") != (self.api is not None):
            needs = "takes no" if self.api else "needs"
            raise ValueError(f"{where}: kind {self.kind!r} {needs} `api` settings")
        if self.samples > 1 and self.kind != "oracle" and not of_plugin:
            more = "set api.samples" if self.api else "only an oracle's may be more"
            raise ValueError(f"{where}: samples={self.samples} must be 1; {more}")
        compared = [name for name in self.filters if name in COMPARED]
        if compared and self.kind != "file" and self.asked < 2:
            raise ValueError(f"{where}: filter {compared[0]!r} needs several samples a query")

    def check_continues(self, where: str, hardest: int) -> None:
        """Raises ValueError unless it can go on from a reply's right steps, to puzzles up to the hardest."""
        if self.kind not in ("oracle", "api") or not hardest:
            raise ValueError(f"{where}: it needs puzzles, whose steps are checked, and an oracle or an API")
        if self.shots or (self.api and self.api.batch):
            raise ValueError(f"{where}: teacher {self.name!r} must have shots=0 and api.batch=False")
        if self.brevity or self.steps != "own" or self.reach < hardest:
            raise ValueError(
                f"{where}: teacher {self.name!r} must write all steps of puzzles: brevity=0, steps='own', "
                f"reach of at least {hardest}"
            )

    @property
    def asked(self) -> int:
        """Replies a query."""
        return self.api.samples if self.api else self.samples


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
    datasets: Annotated[
        Mapping[str, float], MinLen(1)
    ]  # data set to its weight: rows are drawn in these shares
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
        others = [
            name for name in ("anneal_to", "until_plateau", "kind", "distill_weight") if getattr(self, name)
        ]
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
            _check_known(f"{name} has no mode", modes, BENCHMARK_MODES.get(name, modes))
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
        if len(own) < len(self.choices):
            raise ValueError(f"sets of choices need distinct names; got {', '.join(own)}")
        _check_known("unknown benchmark", self.benchmarks, BENCHMARK_MODES)
        _check_known("unknown benchmark", self.evaluation.modes, (*BENCHMARK_MODES, *own))
        for name, modes in own.items():
            _check_known(f"{name} has no mode", self.evaluation.modes.get(name, ()), modes)
        own |= {name: BENCHMARK_MODES[name] for name in self.benchmarks if name in plugins.BENCHMARKS.entries}
        first = {name: modes[:1] for name, modes in own.items()}
        evaluation = replace(self.evaluation, modes={**first, **self.evaluation.modes})
        object.__setattr__(self, "evaluation", evaluation)
        every = dict.fromkeys(OWN_BENCHMARKS, "") | dict(self.benchmarks)
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
            _check_known(f"curriculum stage {stage.name!r} names data set", stage.names, names)
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


# Ablations: arms as changes of one base config


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
        if len(set(conditions)) < len(conditions):
            raise ValueError(f"conditions need distinct names; got {', '.join(conditions)}")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names) or self.baseline not in names:
            raise ValueError(f"arms need distinct names, the baseline's among them; got {', '.join(names)}")
        titles = [result.title for result in self.results]
        for arm in self.arms:
            _check_known(f"arm {arm.name!r} names the result", arm.evaluations, titles)
            self.config(arm, self.seeds[0])
        for condition in self.conditions:
            _check_known(f"condition {condition.name!r} changes arm", condition.arms, names)
            self.under(condition)
        self._check_hypotheses(names, titles)

    def _check_hypotheses(self, arms: Sequence[str], titles: Sequence[str]) -> None:
        names, conditions = [one.name for one in self.hypotheses], [one.name for one in self.conditions]
        if len(set(names)) < len(names):
            raise ValueError(f"hypotheses need distinct names; got {', '.join(names)}")
        for one in self.hypotheses:
            where = f"hypothesis {one.name!r} names"
            _check_known(f"{where} the arm", [one.arm], arms)
            _check_known(f"{where} the arm", [one.minus] if one.minus else [], [*arms, CHANCE])
            _check_known(f"{where} the condition", (*one.conditions, *one.less), conditions)
            _check_known(f"{where} the result", [one.result] if one.result else [], titles)
            for part in self.parts(one.conditions):
                config, evaluation = part.asked(one)
                if evaluation.startswith("puzzles"):
                    families, levels = config.puzzles.families, config.evaluation.difficulties
                    unknown = [
                        task for task in one.tasks if not any(name.startswith(task) for name in families)
                    ]
                    _check_known(f"{where} the task", unknown, families)
                    _check_known(f"{where} the difficulty", one.difficulties, levels)

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
        _check_known(f"{self.name} has no condition", conditions or (), [one.name for one in self.conditions])
        return [one for one in self.conditions if not conditions or one.name in conditions]

    def runs(self, arms: Sequence[str] | None, seeds: Sequence[str] | None) -> list[tuple[ArmConfig, int]]:
        """Arms and seeds in the order they are run: all arms of a seed first.

        Raises:
          ValueError: there is no such arm or seed.
        """
        _check_known(f"{self.name} has no arm", arms or (), [arm.name for arm in self.arms])
        _check_known(f"{self.name} has no seed", seeds or (), self.seeds)
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


# From a config file to dataclasses, and back


def load(config: ConfigDict | Mapping[str, Any]) -> ExperimentConfig:
    """Imports the config's plugins. Raises ConfigError where one, or a key, is unknown, missing or wrong."""
    listed = config.get("plugins", ())
    plugins.load(one for one in (listed if isinstance(listed, list | tuple) else ()) if isinstance(one, str))
    return build(ExperimentConfig, config)


def load_set(config: ConfigDict | Mapping[str, Any]) -> ArmSetConfig:
    """Raises ConfigError where a key is unknown, missing or wrong, or an arm makes no experiment."""
    return build(ArmSetConfig, config)


def complete(config: ConfigDict) -> ConfigDict:
    """The config with every default written out, so that each key can be overridden on a command line."""
    return type(config)(plain(load(config)))


def complete_set(config: ConfigDict) -> ConfigDict:
    """The set with every default of its base written out, so that `--config.base.KEY` can be given."""
    config.base = complete(type(config)(config.base))
    return type(config)({**plain(load_set(config)), "base": config.base})
