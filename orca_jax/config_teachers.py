"""The keys of an experiment's queries and teachers; see `config`."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, MinLen

from orca_jax import files, plugins
from orca_jax.config_check import check_url
from orca_jax.records import Sampling, Usage

Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Amount = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
Part = Annotated[float, Interval(gt=0, le=1)]  # a share above 0
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
    # Of a file with several teachers' answers; None: one teacher's traces.
    columns: ColumnsConfig | None = None

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
