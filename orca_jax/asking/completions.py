"""Chat completions as JSON: what is sent, and which outcome or fault an answer is.

Follows the OpenAI and Azure OpenAI references, and the departures from them of vLLM, SGLang,
llama.cpp, Ollama, LiteLLM and OpenRouter. No input raises.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orca_jax.asking.endpoint import Fault
from orca_jax.records import Message, Outcome, Reply, Sampling, Usage

LONGEST_ERROR = 500  # characters of a server's error that are kept
_KEPT = ("id", "model", "system_fingerprint")
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "quota_exceeded")
_UNKNOWN_MODEL = ("model_not_found", "deploymentnotfound", "unknown_model", "invalid_model")
_TOO_LONG = ("context_length_exceeded", "string_above_max_length", "exceed_context_size_error")
_TOO_LONG_WORDS = ("context length", "context window", "contextwindow")
_UNKNOWN_MODEL_WORDS = ("invalid model name", "model not found")
_FILTER = ("content_filter", "responsibleaipolicyviolation", "content_policy_violation")


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What an HTTP answer means.

    Attributes:
      message: the server's words where there is a fault.
      usage_known: the server said what the request used.
      maybe_paid: there is no answer, but the server may have made one and charged for it.
    """

    reply: Reply
    fault: Fault | None = None
    message: str = ""
    usage_known: bool = False
    maybe_paid: bool = False

    def cleaned(self, scrub: Callable[[Any], Any]) -> Reading:
        """The same after `scrub`, which takes secrets out of JSON values; then long errors are cut."""
        message = scrub(self.message)[:LONGEST_ERROR]
        raw = scrub(self.reply.raw) | ({"error": message} if self.fault else {})
        reply = dataclasses.replace(self.reply, text=scrub(self.reply.text), raw=raw)
        return dataclasses.replace(self, reply=reply, message=message)


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """What came back for one request: its reading, and by lower-case name the headers about limits."""

    reading: Reading
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    status: int | None = None


def body(
    model: str,
    messages: Sequence[Message],
    sampling: Sampling,
    *,
    limit_name: str = "max_tokens",
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The JSON of a request. `parameters` are added; one that is None removes its name.

    A message with empty text is left out when it is a system message: servers treat it unlike none.
    """
    sent: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": message.role, "content": message.content}
            for message in messages
            if message.content or message.role != "system"
        ],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        limit_name: sampling.max_tokens,
    }
    if sampling.stop:
        sent["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        sent["seed"] = sampling.seed
    if sampling.top_logprobs:
        sent |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    sent |= parameters or {}
    return {name: value for name, value in sent.items() if value is not None}


def read(status: int, content: bytes, content_type: str = "") -> Reading:
    """Reads an HTTP answer."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        answer = None
    if answer is None:
        text = content.decode("utf-8", "replace")
        if status >= 300:
            return _error(status, {"message": text})
        return failed(
            Fault.MALFORMED, status, f"not JSON but {content_type or 'no type'}: {text}", maybe_paid=True
        )
    return read_json(status, answer)


def read_json(status: int, answer: Any) -> Reading:
    """Reads an answer's JSON: of an HTTP answer, or of a line of a batch's output."""
    if not isinstance(answer, Mapping):
        return failed(Fault.MALFORMED, status, f"not a JSON object: {json.dumps(answer)}", maybe_paid=True)
    if status >= 300 or answer.get("error") or answer.get("object") == "error":
        return _error(status, answer)
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        if _prompt_filtered(answer):
            return _filtered(answer, "")
        return failed(Fault.MALFORMED, status, f"no choices in {json.dumps(answer)}", maybe_paid=True)
    return _completion(answer, choices[0])


def failed(fault: Fault, status: int | None, message: str, *, maybe_paid: bool = False) -> Reading:
    """A request that got no answer."""
    raw = {"fault": str(fault), "error": message} | ({"status": status} if status else {})
    return Reading(Reply(Outcome.ERROR, "", raw=raw), fault, message, maybe_paid=maybe_paid)


def _completion(answer: Mapping[str, Any], choice: Mapping[str, Any]) -> Reading:
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {}
    text, refusal = _text(message.get("content")), _text(message.get("refusal"))
    reason = str(choice.get("finish_reason") or "")
    if reason == "content_filter":
        return _filtered(answer, text, choice.get("content_filter_results"))
    if reason in ("error", "abort"):  # OpenRouter, and servers that shut down in the middle
        words = json.dumps(choice.get("error") or f"the server ended it with {reason!r}")
        return failed(Fault.SERVER, None, words, maybe_paid=True)
    if reason == "length":
        outcome = Outcome.LENGTH
    elif refusal and not text:
        outcome = Outcome.REFUSED
    else:
        outcome = Outcome.OK if text.strip() else Outcome.EMPTY
    return _reading(answer, outcome, text or refusal, reason, choice.get("logprobs"))


def _filtered(answer: Mapping[str, Any], text: str, results: Any = None) -> Reading:
    return _reading(answer, Outcome.FILTERED, text, "content_filter", filter_results=results)


def _reading(
    answer: Mapping[str, Any],
    outcome: Outcome,
    text: str,
    reason: str,
    logprobs: Any = None,
    filter_results: Any = None,
) -> Reading:
    raw = {name: answer[name] for name in _KEPT if answer.get(name)}
    if reason:
        raw["finish_reason"] = reason
    if logprobs:
        raw["logprobs"] = logprobs
    if filter_results:
        raw["content_filter_results"] = filter_results
    usage = _usage(answer.get("usage"))
    return Reading(Reply(outcome, text, usage or Usage(), raw), usage_known=usage is not None)


def _text(content: Any) -> str:
    """A message's text, which some servers send as a list of parts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, Mapping):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int) or min(prompt, completion) < 0:
        return None
    return Usage(prompt, completion)


def _prompt_filtered(answer: Mapping[str, Any]) -> bool:
    results = json.dumps(answer.get("prompt_filter_results") or answer.get("prompt_annotations") or "")
    return '"filtered": true' in results


def _error(status: int, answer: Mapping[str, Any]) -> Reading:
    """Reads an error in any of its forms, among them one that comes with status 200."""
    error = answer.get("error") or answer
    if not isinstance(error, Mapping):
        error = {"message": error}
    words = error.get("message") or error.get("detail") or error
    message = words if isinstance(words, str) else json.dumps(words)
    codes = _codes(error)
    if status < 300:
        status = next((int(code) for code in codes if code.isdigit() and 400 <= int(code) < 600), 500)
    if codes & set(_FILTER):
        inner = error.get("innererror")
        results = inner.get("content_filter_result") if isinstance(inner, Mapping) else None
        return _filtered({}, "", results)
    return failed(_fault(status, codes, message), status, message)


def _codes(error: Mapping[str, Any]) -> set[str]:
    """The words by which servers classify an error, in lower case."""
    inner = error.get("innererror")
    places = (error, inner) if isinstance(inner, Mapping) else (error,)
    found = (place.get(name) for place in places for name in ("code", "type", "status"))
    return {str(code).lower() for code in found if isinstance(code, str | int)}


def _fault(status: int, codes: set[str], message: str) -> Fault:
    message = message.lower()
    if codes & set(_QUOTA) or status == 402 or "exceeded your current quota" in message:
        return Fault.REFUSED
    if codes & set(_UNKNOWN_MODEL) or _has(message, _UNKNOWN_MODEL_WORDS):
        return Fault.REFUSED
    if status in (401, 403, 404) or 300 <= status < 400:
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
    if status == 401:
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
