"""Chat completions as JSON: what is sent, and which outcome or fault an answer is.

Follows the OpenAI and Azure OpenAI references, and the departures from them of vLLM, SGLang, TGI,
llama.cpp, Ollama, LiteLLM, OpenRouter, Mistral, DeepSeek and of the compatible endpoints of Anthropic,
Gemini and Cohere. No input raises.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from orca_jax.config_teachers import OpenAIConfig
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage
from orca_jax.scrubbing import scrub
from orca_jax.teachers import limits
from orca_jax.teachers.endpoint import Fault

LONGEST_ERROR = 500  # characters of a server's error that are kept
MOST_TOKENS = 2_000_000  # of a prompt or a completion that are believed; no model takes more
NO_USAGE = "usage_not_believed"  # in a reply's raw values: what the server said instead
REASONING = "reasoning_content"  # likewise: what the model thought before it answered
EVENTS = "text/event-stream"
_KEPT = ("id", "model", "system_fingerprint")
_REFUSED = (
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded",
    "model_not_found", "deploymentnotfound", "unknown_model", "invalid_model", "invalid_api_key",
    "api_key_invalid", "unauthenticated",
)  # fmt: skip
_TOO_LONG = ("context_length_exceeded", "string_above_max_length", "exceed_context_size_error")
_TOO_LONG_WORDS = ("context length", "context window", "contextwindow")
_UNKNOWN_MODEL_WORDS = ("invalid model name", "model not found")
_WRONG_KEY_WORDS = ("api key not valid", "incorrect api key", "invalid api key")
_FILTER = ("content_filter", "responsibleaipolicyviolation", "content_policy_violation")
# Reasons to finish, in lower case and without separators. Only these are of a whole answer.
_WHOLE = ("stop", "stopsequence", "eos", "eostoken", "endturn", "complete")
_WITHHELD = re.compile(
    "filter|safety|recitation|blocklist|prohibited|spii|sensitive|guardrail|toxic|moderation"
)
_CUT = re.compile("length|max[a-z]*tokens?|tokenlimit|errorlimit|contextwindow")
_DECLINED = ("refusal", "refused")
_TOOLS = ("toolcalls", "toolcall", "tooluse", "functioncall")


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """What an HTTP answer means.

    Attributes:
      usage_known: the server said what the request used.
      maybe_paid: there is no answer, but the server may have made one and charged for it.
      headers: those about limits, by lower-case name.
      status: of HTTP; None where nothing came back.
    """

    reply: Reply
    usage_known: bool = False
    maybe_paid: bool = False
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    status: int | None = None

    @property
    def fault(self) -> Fault | None:
        return Fault(self.reply.raw["fault"]) if "fault" in self.reply.raw else None

    @property
    def message(self) -> str:
        """The server's words where there is a fault."""
        return str(self.reply.raw.get("error", ""))

    def cleaned(self, most: int) -> Response:
        """The same of a request for `most` tokens: without secrets, then without the rest of a long error.

        An answer that used them all and has no reason to end is cut.
        """
        reply, raw = self.reply, scrub(self.reply.raw)
        if self.fault:
            raw["error"] = raw["error"][:LONGEST_ERROR]
        unsaid = reply.outcome is Outcome.OK and "finish_reason" not in raw
        outcome = Outcome.LENGTH if unsaid and reply.usage.completion_tokens >= most else reply.outcome
        cleaned = dataclasses.replace(reply, outcome=outcome, text=scrub(reply.text), raw=raw)
        return dataclasses.replace(self, reply=cleaned)


def body(config: OpenAIConfig, messages: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
    """The JSON of a request. `config.parameters` are added; one that is None removes its name.

    A message with empty text is left out when it is a system message: servers treat it unlike none.
    """
    sent: dict[str, Any] = {
        "model": config.model,
        "messages": [
            {"role": message.role, "content": message.content}
            for message in messages
            if message.content or message.role != "system"
        ],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        config.limit_name: sampling.max_tokens,
    }
    if sampling.stop:
        sent["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        sent["seed"] = sampling.seed
    if sampling.top_logprobs:
        sent |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    if config.stream:
        sent |= {"stream": True, "stream_options": {"include_usage": True}}
    return {name: value for name, value in {**sent, **config.parameters}.items() if value is not None}


def read(status: int, content: bytes, content_type: str = "") -> Response:
    """Reads an HTTP answer, whole or as server-sent events."""
    try:
        answer = _joined(content) if content_type.startswith(EVENTS) else json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if answer is None:
        text = content.decode("utf-8", "replace")
        if status >= 300:
            return _error(status, {"message": text})
        said = f"neither JSON nor a whole stream but {content_type or 'no type'}: {text}"
        return failed(Fault.MALFORMED, status, said, maybe_paid=True)
    return read_json(status, answer)


def read_json(status: int, answer: Any) -> Response:
    """Reads an answer's JSON: of an HTTP answer, or of a line of a batch's output."""
    first = _first(answer)
    is_error = isinstance(first, Mapping) and (first.get("error") or first.get("object") == "error")
    if status >= 300 or is_error:
        return _error(status, answer)
    if not isinstance(answer, Mapping):
        return failed(Fault.MALFORMED, status, f"not a JSON object: {json.dumps(answer)}", maybe_paid=True)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        results = answer.get("prompt_filter_results") or answer.get("prompt_annotations")
        if '"filtered": true' in json.dumps(results):
            return _filtered(answer)
        return failed(Fault.MALFORMED, status, f"no choices in {json.dumps(answer)}", maybe_paid=True)
    return _completion(answer, choices[0])


def _joined(content: bytes) -> Any:
    """The answer, or the error, that the events of a stream make up.

    Raises:
      ValueError: it breaks off: nothing says that the answer has ended.
      RecursionError: an event is nested too deeply.
    """
    answer: dict[str, Any] = {}
    choice: dict[str, Any] = {"message": {}, "logprobs": {}}
    for event in content.replace(b"\r\n", b"\n").split(b"\n\n"):
        data = b"\n".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")).strip()
        if data == b"[DONE]":
            return answer
        piece = json.loads(data) if data else {}
        if not isinstance(piece, Mapping):
            return piece
        if failure := piece.get("error") or piece.get("object") == "error":
            if not answer:
                return piece
            # What came before it may have to be paid for.
            return answer | {"choices": [choice | {"finish_reason": "error", "error": failure}]}
        answer |= {name: value for name, value in piece.items() if value and name != "choices"}
        if isinstance(first := _first(piece.get("choices")), Mapping):
            answer["choices"] = [choice]
            delta = first.get("delta")
            if isinstance(delta, Mapping):
                _add(choice["message"], {**delta, "content": _text(delta.get("content"))})
            _add(choice["logprobs"], first.get("logprobs"))
            choice |= {
                name: first[name] for name in first if first[name] and name not in ("delta", "logprobs")
            }
    if not choice.get("finish_reason"):
        raise ValueError
    return answer


def _add(whole: dict[str, Any], piece: Any) -> None:
    """Makes the texts and lists of a message, or of its log-probabilities, longer."""
    for name, value in piece.items() if isinstance(piece, Mapping) else ():
        if value:
            longer = isinstance(value, str | list) and type(whole.get(name)) is type(value)
            whole[name] = whole[name] + value if longer else value


def failed(fault: Fault, status: int | None, message: str, *, maybe_paid: bool = False) -> Response:
    """A request that got no answer."""
    raw = {"fault": str(fault), "error": message} | ({"status": status} if status else {})
    return Response(Reply(Outcome.ERROR, "", raw=raw), maybe_paid=maybe_paid, status=status)


def _completion(answer: Mapping[str, Any], choice: Mapping[str, Any]) -> Response:
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {}
    text, refusal = _text(message.get("content")), _text(message.get("refusal"))
    reason = str("" if choice.get("finish_reason") is None else choice["finish_reason"])
    calls = message.get("tool_calls") or message.get("function_call")
    about = {
        "finish_reason": reason,
        "logprobs": choice.get("logprobs"),
        REASONING: _text(message.get("reasoning_content")) or _text(message.get("reasoning")),
    }
    outcome = Outcome.ERROR if calls else ended(reason)
    if outcome is Outcome.FILTERED:
        about["content_filter_results"] = choice.get("content_filter_results")
    if outcome is Outcome.ERROR:
        tools = calls or _squeezed(reason) in _TOOLS
        words = "the model calls a tool, and was given none" if tools else "the answer is not whole"
        words += f" (finish_reason {reason!r})"
        words += f": {json.dumps(choice['error'])}" if choice.get("error") else ""
        # To call a tool is the model's answer to this request; the others are accidents.
        return _reading(answer, outcome, text, about, Fault.REQUEST if tools else Fault.SERVER, words)
    if outcome is Outcome.OK and not text.strip():
        outcome = Outcome.REFUSED if refusal else Outcome.EMPTY
    return _reading(answer, outcome, text or refusal, about)


def ended(reason: str) -> Outcome:
    """How a generation ended for which a server gives this reason, in whatever case and with whatever
    separators: `OK` where the answer is known to be whole, and without a reason; `ERROR` for any other."""
    squeezed = _squeezed(reason)
    if squeezed in _WHOLE or not reason:
        return Outcome.OK
    if _WITHHELD.search(squeezed):
        return Outcome.FILTERED
    if _CUT.search(squeezed):
        return Outcome.LENGTH
    return Outcome.REFUSED if squeezed in _DECLINED else Outcome.ERROR


def _squeezed(reason: str) -> str:
    return re.sub("[^a-z0-9]", "", reason.lower()).removeprefix("finishreason")


def _filtered(answer: Mapping[str, Any], results: Any = None) -> Response:
    about = {"finish_reason": "content_filter", "content_filter_results": results}
    return _reading(answer, Outcome.FILTERED, "", about)


def _reading(
    answer: Mapping[str, Any],
    outcome: Outcome,
    text: str,
    about: Mapping[str, Any],
    fault: Fault | None = None,
    words: str = "",
) -> Response:
    """A reading of what was generated; `about` is kept of its choice, as far as there is any."""
    raw = {name: answer[name] for name in _KEPT if answer.get(name)}
    raw |= {name: value for name, value in about.items() if value}
    if fault:
        raw |= {"fault": str(fault), "error": words}
    usage = _usage(answer.get("usage"))
    if usage is None and answer.get("usage"):
        raw[NO_USAGE] = json.dumps(answer["usage"])[:LONGEST_ERROR]
    reply = Reply(outcome, text, usage or Usage(), raw)
    return Response(reply, usage_known=usage is not None, maybe_paid=fault is not None)


def _text(content: Any) -> str:
    """A message's text, which some servers send as a list of parts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _usage(usage: Any) -> Usage | None:
    """What a server says was used, where it can be so."""
    if not isinstance(usage, Mapping):
        return None
    tokens: list[Any] = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    if any(
        isinstance(n, bool) or not isinstance(n, int | float) or not 0 <= n <= MOST_TOKENS for n in tokens
    ):
        return None
    return Usage(*map(math.ceil, tokens))


def _first(value: Any) -> Any:
    """The first of a list, as which Gemini's compatible endpoint sends an error."""
    return value[0] if isinstance(value, list) and value else value


def _error(status: int, answer: Any) -> Response:
    """Reads an error in any of its forms, among them one that comes with status 200."""
    error = _first(answer)
    if isinstance(error, Mapping):
        error = _first(error.get("error")) or error
    if not isinstance(error, Mapping):
        error = {"message": error}
    words = error.get("message") or error.get("detail") or error
    message = words if isinstance(words, str) else json.dumps(words)
    # The words by which servers classify an error.
    inner = error.get("innererror")
    places = (error, inner) if isinstance(inner, Mapping) else (error,)
    found = (place.get(name) for place in places for name in ("code", "type", "status"))
    codes = {str(code).lower() for code in found if isinstance(code, str | int)}
    if status < 300:
        status = next((int(code) for code in codes if re.fullmatch("[45][0-9]{2}", code)), 500)
    if codes & set(_FILTER):
        results = inner.get("content_filter_result") if isinstance(inner, Mapping) else None
        return _filtered({}, results)
    return failed(_fault(status, codes, message), status, message)


def _fault(status: int, codes: set[str], message: str) -> Fault:
    message = message.lower()
    # Gemini says so of its limits a minute too, and then when to ask again.
    quota = "exceeded your current quota" in message and limits.retry_after({}, message) is None
    said = codes & set(_REFUSED) or _has(message, (*_WRONG_KEY_WORDS, *_UNKNOWN_MODEL_WORDS))
    if said or quota or status in (401, 402, 403, 404) or 300 <= status < 400:
        return Fault.REFUSED
    if status == 429:
        return Fault.RATE_LIMIT
    if status in (408, 409, 425) or status >= 500:
        return Fault.SERVER
    too_long = codes & set(_TOO_LONG) or status == 413 or _has(message, _TOO_LONG_WORDS)
    return Fault.TOO_LONG if too_long else Fault.REQUEST


def _has(message: str, words: Sequence[str]) -> bool:
    return any(word in message for word in words)


def advice(status: int | None, message: str) -> str:
    """What to do about a fault that concerns every request."""
    if status == 401 or _has(message.lower(), _WRONG_KEY_WORDS):
        return "the key is wrong or has expired: correct it and run again"
    if status == 403:
        return "the key may not use this model or this address: ask for access, or use another key"
    if status == 404 or _has(message.lower(), _UNKNOWN_MODEL_WORDS):
        return "the model, deployment or address is unknown: correct model, base_url and api_version"
    if status is not None and 300 <= status < 400:
        return "the server sends elsewhere, and keys are not sent on: correct base_url"
    if status in (402, 429) or "quota" in message or "billing" in message:
        return "the quota is exhausted: raise it or use another key; what was answered is kept"
    return "the server takes no request of this model: correct the endpoint's settings"
