"""Conversations of data sets: the columns that hold them, read as messages; files of traces.

  messages, conversations   a list of turns: role (or from) and content (or value)
  question, response        texts, with system_prompt or system (OpenOrca)
  instruction, output       texts, with input below the instruction (Alpaca)
  prompt, completion        texts, or lists of turns, of which the prompt's carry no loss (TRL); also
                            prompt, response, where the row has no other pair

Beside all of them `system` or `system_prompt` is the system message and `weight` scales the loss; beside
texts `history` is a list of earlier (question, answer) pairs. A turn's `weight`, `train`, `training`, `loss`
and `loss_scale` scale the loss of an assistant's turn, and `mask` takes it away (OpenAI, axolotl, ms-swift).
What else changes a prompt or the loss (tools, images, weights of other turns) is refused; all other columns,
and other keys of turns, are kept as `extra`.

Traces are read from JSON lines, a JSON array or Parquet, in these columns or the fields of `Trace` (native).
Of a file with several teachers' answers beside each question, one teacher's are read by the columns' names.
They are written in four schemas, as JSON lines or Parquet:

  native      the fields of `Trace`; keeps everything
  openorca    id, system_prompt, question, response; an id's prefix before the dot is its collection
  messages    id, messages [{role, content}]
  sharegpt    id, conversations [{from: system, human or gpt, value}]

The last three hold the conversation and `extra` only. A turn has a `weight` too where that is not 1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orca_jax import files
from orca_jax.artifacts import atomic_write
from orca_jax.records import (
    Message,
    Outcome,
    RecordError,
    Sampling,
    Trace,
    check_turns,
    from_json,
    half_pair,
    to_json,
)

ALIASES = {
    alias: role
    for role, aliases in {
        "system": "system developer",
        "user": "user human prompter",
        "assistant": "assistant gpt chatgpt bing bard model bot ai",
    }.items()
    for alias in aliases.split()
}
TURNS = ("messages", "conversations", "conversation")  # columns of turns
TEXTS = {"openorca": ("question", "response"), "alpaca": ("instruction", "output")}
TEXTS |= {"completion": ("prompt", "completion"), "response": ("prompt", "response")}
SYSTEM = ("system", "system_prompt", "system_message")
USED = {*SYSTEM, "weight", "id"}  # beside a conversation's own columns
WEIGHTS = ("weight", "train", "training", "loss", "loss_scale")
TURN_KEYS = {"role", "from", "content", "value", "mask", *WEIGHTS}
# What a prompt or an answer has besides its text: a row or a turn with one of them is refused.
REFUSED = {"tools", "functions", "tool_calls", "function_call", "tool_call_id", "documents"}
REFUSED |= {"chat_template_kwargs", "images", "image", "videos", "video", "audios", "audio"}
REFUSED |= {"train_detail", "training_detail"}
EMPTY = ("", "[]", "{}", "null", "none")
ACCEPTED = (
    "accepted: native (id, query_id, sample, messages, ...); messages; conversations; "
    "system_prompt, question, response; instruction, input, output; prompt, completion; prompt, response; "
    "or name two columns: --config.teachers[0].columns.question=COLUMN "
    "--config.teachers[0].columns.answer=COLUMN"
)
ROW_GROUP = 1000  # rows; what is held in memory while Parquet is written
SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SCHEMAS = {
    "native": ("id", "query_id", "sample", "messages"),
    "openorca": ("id", "system_prompt", "question", "response"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
}
Recognise = Callable[[str], int | None]


class Conversation(NamedTuple):
    """A row's messages, the columns that they were read from, and all other columns but `id`."""

    messages: tuple[Message, ...]
    columns: Sequence[str]
    extra: dict[str, Any]


def read(row: Mapping[str, Any], *, join_turns: bool = False) -> Conversation:
    """The conversation of a row.

    Empty system texts, and an empty or null last answer, mean that there is none.

    Args:
      join_turns: consecutive turns of one role become one, with a blank line between them.

    Raises:
      RecordError: the row holds none, one that cannot be trained on, or something that is not read.
    """
    _refuse(row)
    of_turns: dict[str, Any] = {}
    if held := [name for name in TURNS if isinstance(row.get(name), list)]:
        columns: Sequence[str] = held
        messages = _turns(row, held[0], of_turns)
        if any(_turns(row, name, {}) != messages for name in held[1:]):
            raise RecordError(f"columns {' and '.join(held)} hold different conversations; keep one")
    else:
        columns, messages = _texts(row, of_turns)
    messages = _with_system(row, [m for m in messages if m.content or m.role != "system"])
    if messages[-1:] and messages[-1].role == "assistant" and not messages[-1].content:
        messages.pop()
    if (factor := _number(row, "weight", 1)) != 1:
        messages = [
            dataclasses.replace(m, weight=m.weight * factor) if m.role == "assistant" else m for m in messages
        ]
    extra = {key: value for key, value in row.items() if key not in USED and key not in columns}
    if isinstance(extra.get("extra"), dict):
        extra = {**extra.pop("extra"), **extra}
    return Conversation(checked(messages, join_turns=join_turns), columns, {**extra, **of_turns})


def checked(messages: Iterable[Message], *, join_turns: bool = False) -> tuple[Message, ...]:
    """The messages, joined if `join_turns`; raises RecordError as `read`, and names the turn."""
    turns = tuple(messages)
    if join_turns:
        alike = itertools.groupby(turns, key=lambda turn: (turn.role, turn.weight))
        turns = tuple(
            Message(role, "\n\n".join(turn.content for turn in group), weight)
            for (role, weight), group in alike
        )
    check_turns(turns)
    for number, message in enumerate(turns):
        content = message.content
        if message.role == "user" and not content.strip():
            raise RecordError(f"messages[{number}]: a user's turn is empty; drop the row")
        if not content.isascii() and (half := half_pair(content)):
            raise RecordError(f"messages[{number}]: half a surrogate pair ({half}), which is no character")
    return turns


def _refuse(values: Mapping[str, Any]) -> None:
    for key in () if REFUSED.isdisjoint(values) else values.keys() & REFUSED:
        given = values[key]
        if given and not (isinstance(given, str) and given.strip().lower() in EMPTY):
            raise RecordError(f"{key!r} is not read, and changes what is trained; drop the row")


def _with_system(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """With the system message that stands in a column of its own."""
    texts = {text for name in SYSTEM if name in row and (text := _text(row, name))}
    own = {message.content for message in messages if message.role == "system"}
    if texts and len(texts | own) > 1:
        raise RecordError("the row has several different system messages; keep one")
    return messages if texts <= own else [Message("system", texts.pop()), *messages]


# Columns of texts


def _texts(row: Mapping[str, Any], of_turns: dict[str, Any]) -> tuple[Sequence[str], list[Message]]:
    """The columns read, and their messages."""
    whole = [schema for schema, columns in TEXTS.items() if row.keys() >= {*columns}]
    if len(whole) > 1 and whole[-1] == "response":
        whole.pop()  # the other pair may stand beside a prompt
    if len(whole) > 1:
        raise RecordError(f"the row has the columns of {' and '.join(whole)}; keep one pair of them")
    for name in () if whole else TURNS:
        if row.get(name) is not None:
            raise RecordError(f"column {name!r} must be a list of turns, not {row[name]!r:.60}; {ACCEPTED}")
    among = f"among {', '.join(row) or 'none'}; {ACCEPTED}"
    for asked, answered in () if whole else TEXTS.values():
        if asked in row or answered in row:
            raise RecordError(f"column {answered if asked in row else asked!r} is missing, {among}")
    if not whole:
        raise RecordError(f"column 'messages' is missing, {among}")
    if whole == ["openorca"] and row.keys().isdisjoint(SYSTEM):
        raise RecordError(f"column 'system_prompt' is missing (it may be empty), {among}")
    asked, answered = TEXTS[whole[0]]
    if whole[0] in ("completion", "response"):
        prompt, completion = (
            _turns(row, name, of_turns) if isinstance(row[name], list) else [Message(role, _text(row, name))]
            for name, role in ((asked, "user"), (answered, "assistant"))
        )
        prompt = [Message(m.role, m.content, 0.0) if m.role == "assistant" else m for m in prompt]
        return (asked, answered, "history"), [*_history(row), *prompt, *completion]
    names = (asked, "input") if whole == ["alpaca"] else (asked,)
    question = "\n".join(text for name in names if name in row and (text := _text(row, name)))
    if not question:
        raise RecordError(f"column {asked!r} is empty; drop the row")
    turns = [Message("user", question), Message("assistant", _text(row, answered))]
    return (*names, answered, "history"), [*_history(row), *turns]


def _history(row: Mapping[str, Any]) -> list[Message]:
    messages = list[Message]()
    pairs = row.get("history") or []
    for pair in pairs if isinstance(pairs, list) else [pairs]:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RecordError(f"column 'history' must be pairs of question and answer, not {pair!r:.60}")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise RecordError(f"column {column!r} must be text, not {value!r:.60}")
    return value or ""


# Columns of turns


def _turns(row: Mapping[str, Any], column: str, of_turns: dict[str, Any]) -> list[Message]:
    """A column's messages; what else its turns hold goes to `of_turns`."""
    turns = row[column]
    if not turns:
        raise RecordError(f"column {column!r} must be a list of turns, not []; {ACCEPTED}")
    messages = []
    for number, turn in enumerate(turns):
        try:
            messages.append(_turn(turn, last=number == len(turns) - 1))
        except RecordError as error:
            raise RecordError(f"{column}[{number}]: {error}") from error
    if any(len(turn) > 2 for turn in turns):
        rest = [
            {key: value for key, value in turn.items() if key not in TURN_KEYS and value is not None}
            for turn in turns
        ]
        of_turns |= {column: rest} if any(rest) else {}
    return messages


def _turn(turn: Any, *, last: bool) -> Message:
    if not isinstance(turn, dict):
        raise RecordError(f"a turn must be an object of role and content, not {turn!r:.60}")
    if len(turn) == 2 and turn.get("role") in ("user", "assistant") and isinstance(turn.get("content"), str):
        return Message(turn["role"], turn["content"])  # what most turns are
    _refuse(turn)
    named = _either(turn, "role", "from")
    role = ALIASES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        raise RecordError(f"unknown role {named!r:.60}; known: {', '.join(ALIASES)}")
    content = _either(turn, "content", "value")
    if content is None and not (last and role == "assistant"):
        raise RecordError(f"the {role}'s 'content' is null; drop the row")
    weight = math.prod(_number(turn, name, 1) for name in WEIGHTS) * (1 - _number(turn, "mask", 0))
    given = any(turn.get(key) for key in WEIGHTS)
    if role != "assistant" and given and weight:
        raise RecordError(f"loss is asked for on a {role}'s turn; data.supervise says where it may be")
    return Message(role, _content(content), weight if role == "assistant" else 1.0)


def _either(turn: Mapping[str, Any], first: str, second: str) -> Any:
    """The value of one of two names."""
    if first not in turn and second not in turn:
        raise RecordError(f"{first!r} is missing; {ACCEPTED}")
    one, other = turn.get(first), turn.get(second)
    if one is not None and other is not None and one != other:
        raise RecordError(f"{first!r} and {second!r} differ; keep one")
    return other if one is None else one


def _content(content: Any) -> str:
    """A text, or the texts of a list of parts, one after the other."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise RecordError(f"'content' must be text, not {content!r:.60}")
    for part in content:
        if not (isinstance(part, dict) and isinstance(part.get("text"), str) and part.get("type") == "text"):
            kind = part.get("type") if isinstance(part, dict) else part
            raise RecordError(f"a part of 'content' must be text, not {kind!r:.60}")
    return "".join(part["text"] for part in content)


def _number(values: Mapping[str, Any], name: str, default: float) -> float:
    """A weight of 0 or more, or a flag."""
    value = values.get(name)
    if value is None:
        return default
    most = 1.0 if name == "mask" else 1e6
    if not isinstance(value, bool | int | float) or not 0 <= value <= most:
        raise RecordError(f"{name!r} must be true, false or a number of 0 or more, not {value!r:.60}")
    return float(value)


# Rows with several teachers' answers


def _of_teacher(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """A row with one teacher's answer, and the `target` and `task` beside it; other columns are not kept.

    The id is a hash of the question, so that every teacher's traces have the same.
    """
    for name in filter(None, columns.values()):
        if name not in row:
            raise RecordError(f"column {name!r} is missing, among {', '.join(row) or 'none'}")
    _refuse(row)
    question, answer = (_said(row, columns[name]) for name in ("question", "answer"))
    system = {name: row[name] for name in SYSTEM if name in row} or {"system_prompt": ""}
    identity = hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    chosen: dict[str, Any] = {"id": identity, **system, "question": question, "response": answer}
    if column := columns.get("score"):
        score = row[column]
        if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
            raise RecordError(f"column {column!r} must be a number, not {score!r:.60}")
        chosen["score"] = score
    return chosen, {name: _said(row, column) for name in ("target", "task") if (column := columns.get(name))}


def _said(row: Mapping[str, Any], column: str) -> str:
    """A text without white space at its ends; of a number or a truth value what Python writes."""
    value = row[column]
    return str(value) if isinstance(value, int | float) else _text(row, column).strip()


# Files of traces


def read_traces(
    path: str | os.PathLike[str],
    *,
    teacher: str = "",
    recognise: Recognise = lambda text: None,
    tally: files.Tally | None = None,
    join_turns: bool = False,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Trace]:
    """Reads traces of any schema, row by row, from JSON lines, a JSON array or Parquet.

    A null or empty system text means no system message, a null or empty last answer `Outcome.EMPTY`.

    Args:
      path: a file that `files.rows` reads.
      teacher: who answered; native rows name their own.
      recognise: gives a system text's id; called with the empty string where there is none.
      tally: counts the malformed rows, which are left out, and says how many there may be.
      join_turns: consecutive turns of one role become one.
      columns: of a file with several teachers' answers, the columns of `question` and `answer`, and of
        `target`, `task` and `score` where there are such; a score is kept in `extra`.

    Raises:
      RecordError: too many rows are malformed, or the file is damaged; names file, row, column.
    """
    path = Path(path)

    def trace(row: files.Row) -> Trace:
        if not isinstance(row.values, dict):
            raise RecordError(f"a row must be a JSON object, not {row.values!r:.60}; {ACCEPTED}")
        values, named = _of_teacher(row.values, columns) if columns else (row.values, dict[str, str]())
        if "query_id" in values and "outcome" in values:
            found = from_json(Trace, values)
            found = dataclasses.replace(found, messages=checked(found.messages, join_turns=join_turns))
        else:
            messages, held, extra = read(values, join_turns=join_turns)
            id = values.get("id")
            id = f"{path.stem}-{row.number}" if id is None else str(id)
            system = messages[0].content if messages[0].role == "system" else ""
            answered = messages[-1].role == "assistant" and messages[-1].content.strip()
            found = Trace(
                id=id,
                query_id=id,
                sample=0,
                messages=messages,
                collection=id.split(".")[0] if "question" in held and "." in id else "",
                task=named.get("task", ""),
                system_message_id=recognise(system),
                teacher=teacher,
                sampling=Sampling(),
                outcome=Outcome.OK if answered else Outcome.EMPTY,
                target=named.get("target") or None,
                extra=extra,
            )
        if half := half_pair(f"{found.id}{found.query_id}{found.collection}{found.task}{found.teacher}"):
            raise RecordError(f"an id or name has half a surrogate pair ({half}), which is no character")
        return found

    return files.counted(path, files.rows(path), trace, tally or files.Tally())


def write_traces(path: str | os.PathLike[str], traces: Iterable[Trace], schema: str = "native") -> int:
    """Writes traces as JSON lines or Parquet, whole or not at all, and returns how many.

    In Parquet `extra` is a column of JSON.

    Raises:
      RecordError: the schema is unknown, or cannot hold a trace; the message names the trace.
    """
    if schema not in SCHEMAS:
        raise RecordError(f"unknown schema {schema!r}; known: {', '.join(SCHEMAS)}")
    path = Path(path)
    if path.suffix == ".gz":
        raise RecordError(f"{path}: packed files are read and not written; name it {path.stem}")
    rows = (_as_row(trace, schema) for trace in traces)
    return _write_parquet(path, rows, schema) if files.is_parquet(path) else files.write_json_rows(path, rows)


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], schema: str) -> int:
    import pyarrow.parquet

    columns, count = _columns(schema), 0
    with atomic_write(path, "wb") as file, pyarrow.parquet.ParquetWriter(file, columns) as writer:
        while group := list(itertools.islice(rows, ROW_GROUP)):
            for row in group:
                if "sampling" in row:  # what JSON leaves out
                    row["sampling"] = {"top_logprobs": 0, **row["sampling"]}
                row["extra"] = json.dumps(row.get("extra", {}), default=str)
            try:
                writer.write_table(pyarrow.Table.from_pylist(group, schema=columns))
            except UnicodeEncodeError as error:
                half = (row["id"] for row in group if half_pair(json.dumps(row, ensure_ascii=False)))
                raise RecordError(
                    f"{path}: trace {next(half)!r} holds half a character pair, which Parquet cannot; "
                    "write JSON lines"
                ) from error
            count += len(group)
    return count


def _columns(schema: str) -> Any:
    """The columns of a Parquet file of traces; those that are not named here are texts."""
    import pyarrow as pa

    text, number, real = pa.string(), pa.int64(), pa.float64()
    sampling = {"temperature": real, "top_p": real, "max_tokens": number, "stop": pa.list_(text)}
    typed = {
        "messages": pa.list_(pa.struct({"role": text, "content": text, "weight": real})),
        "conversations": pa.list_(pa.struct({"from": text, "value": text, "weight": real})),
        "sample": number,
        "system_message_id": number,
        "sampling": pa.struct({**sampling, "seed": number, "top_logprobs": number}),
        "usage": pa.struct({"prompt_tokens": number, "completion_tokens": number}),
    }
    names = Trace.__dataclass_fields__ if schema == "native" else ["id", *SCHEMAS[schema], "extra"]
    return pa.schema([(name, typed.get(name, text)) for name in dict.fromkeys(names)])


def _as_row(trace: Trace, schema: str) -> dict[str, Any]:
    if schema == "native":
        return to_json(trace)
    turns, row = to_json(trace.messages), dict[str, Any](id=trace.id)
    if schema == "openorca":
        row |= _openorca_texts(trace)
    elif schema == "messages":
        row["messages"] = turns
    else:
        row["conversations"] = [
            {"from": SHAREGPT_NAMES[turn.pop("role")], "value": turn.pop("content"), **turn} for turn in turns
        ]
    return row | ({"extra": dict(trace.extra)} if trace.extra else {})


def _openorca_texts(trace: Trace) -> dict[str, Any]:
    messages = list(trace.messages)
    system = messages.pop(0).content if messages and messages[0].role == "system" else ""
    roles = [message.role for message in messages]
    if roles not in (["user"], ["user", "assistant"]):
        raise RecordError(
            f"trace {trace.id!r}: openorca holds one question and one answer, "
            f"not {', '.join(roles) or 'nothing'}; write the schema messages"
        )
    if messages[-1].weight != 1:
        raise RecordError(f"trace {trace.id!r}: openorca holds no weights; write the schema messages")
    question, response = messages[0].content, messages[1].content if len(messages) == 2 else ""
    return {"system_prompt": system, "question": question, "response": response}
