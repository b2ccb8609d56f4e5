"""Which outcome or fault an answer is, in the forms of OpenAI, Azure and the servers beside them."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.config_teachers import OpenAIConfig
from orca_jax.records import Message, Outcome, Sampling, Usage
from orca_jax.teachers import completions
from orca_jax.teachers.endpoint import Fault
from tests.teachers.server import completion

FILTER = {"hate": {"filtered": True, "severity": "high"}, "violence": {"filtered": False, "severity": "safe"}}


def read(status, body, content_type="application/json"):
    return completions.read(
        status, body if isinstance(body, bytes) else json.dumps(body).encode(), content_type
    )


class TestAnswers:
    def test_an_answer(self):
        reading = read(200, completion("So.", (5, 3)) | {"system_fingerprint": "fp_1", "created": 7})
        assert (reading.reply.outcome, reading.reply.text) == (Outcome.OK, "So.")
        assert reading.reply.usage == Usage(5, 3)
        assert reading.usage_known
        assert reading.fault is None
        assert reading.reply.raw == {
            "id": "chatcmpl-1",
            "model": "teacher-0613",
            "system_fingerprint": "fp_1",
            "finish_reason": "stop",
        }

    @pytest.mark.parametrize(
        ("body", "outcome", "text"),
        [
            (completion("cut", finish_reason="length"), Outcome.LENGTH, "cut"),
            (completion(None, finish_reason="length"), Outcome.LENGTH, ""),
            (completion(""), Outcome.EMPTY, ""),
            (completion(" \n"), Outcome.EMPTY, " \n"),
            (completion(None), Outcome.EMPTY, ""),
            (completion(message={"content": None, "refusal": "I cannot."}), Outcome.REFUSED, "I cannot."),
            (completion(message={"content": "So.", "refusal": None}), Outcome.OK, "So."),
            (
                completion(message={"content": [{"type": "text", "text": "a"}, {"text": "b"}]}),
                Outcome.OK,
                "ab",
            ),
            (completion(message=None), Outcome.EMPTY, ""),
            (completion("So.", finish_reason=None), Outcome.OK, "So."),
            # Azure's two forms of a filter that stopped the answer, and one that stopped the prompt.
            (completion("half", finish_reason="content_filter"), Outcome.FILTERED, "half"),
            (completion(message={}, finish_reason="content_filter"), Outcome.FILTERED, ""),
            (
                {"choices": [], "prompt_filter_results": [{"content_filter_results": FILTER}]},
                Outcome.FILTERED,
                "",
            ),
        ],
    )
    def test_outcomes(self, body, outcome, text):
        reading = read(200, body)
        assert (reading.reply.outcome, reading.reply.text, reading.fault) == (outcome, text, None)

    @pytest.mark.parametrize(
        ("outcome", "reasons"),
        [
            (Outcome.OK, "stop STOP Stop FINISH_REASON_STOP eos eos_token EOS_TOKEN end_turn EndTurn"),
            (Outcome.OK, "stop_sequence STOP_SEQUENCE stop-sequence COMPLETE"),
            (Outcome.LENGTH, "length LENGTH max_tokens MAX_TOKENS MaxTokens max-tokens model_length"),
            (Outcome.LENGTH, "MAX_LENGTH max_new_tokens max_output_tokens FINISH_REASON_MAX_TOKENS"),
            (Outcome.LENGTH, "model_context_window_exceeded ERROR_LIMIT"),
            (Outcome.FILTERED, "content_filter CONTENT_FILTER content_filter:hate content-filtered SAFETY"),
            (Outcome.FILTERED, "RECITATION BLOCKLIST PROHIBITED_CONTENT SPII IMAGE_SAFETY sensitive"),
            (Outcome.FILTERED, "guardrail_intervened ERROR_TOXIC"),
            (Outcome.REFUSED, "refusal"),
            (Outcome.ERROR, "insufficient_system_resource network_error timeout cancelled USER_CANCEL"),
            (Outcome.ERROR, "unknown error ERROR abort OTHER LANGUAGE tool_calls TOOL_CALL tool_use"),
            (Outcome.ERROR, "function_call MALFORMED_FUNCTION_CALL pause_turn FINISH_REASON_UNSPECIFIED"),
            (Outcome.ERROR, "null 1 nonstop stop_failed not_complete ? 停止"),
        ],
    )
    def test_only_known_reasons_end_a_whole_answer(self, outcome, reasons):
        for reason in reasons.split():
            reading = read(200, completion("Half an ans", (5, 3), finish_reason=reason))
            assert (reason, reading.reply.outcome) == (reason, outcome)
            assert reading.reply.raw["finish_reason"] == reason
            assert (reading.reply.text, reading.reply.usage) == ("Half an ans", Usage(5, 3))
            assert reason in reading.message or outcome is not Outcome.ERROR

    def test_without_a_reason_what_used_all_its_tokens_is_cut(self):
        for reason, most, outcome in ((None, 3, "length"), (None, 4, "ok"), ("stop", 3, "ok")):
            reading = read(200, completion("So.", (5, 3), finish_reason=reason)).cleaned(most)
            assert reading.reply.outcome == outcome

    @pytest.mark.parametrize("reason", ["stop", "tool_calls", "length", None])
    @pytest.mark.parametrize("calls", [{"tool_calls": [{"id": "1"}]}, {"function_call": {"name": "f"}}])
    def test_text_beside_a_tool_call_is_not_whole(self, calls, reason):
        message = {"role": "assistant", "content": "Let me look.", **calls}
        reading = read(200, completion(message=message, finish_reason=reason))
        assert (reading.reply.outcome, reading.fault) == (Outcome.ERROR, Fault.REQUEST)
        none = dict.fromkeys(calls) | {"content": "So."}
        assert read(200, completion(message=none)).reply.outcome is Outcome.OK

    @pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
    def test_reasoning_is_kept(self, name):
        message = {"content": "So.", name: "First,"}
        reply = read(200, completion(message=message)).reply
        assert (reply.text, reply.raw["reasoning_content"]) == ("So.", "First,")

    @pytest.mark.parametrize(
        "error",
        [
            {"code": "content_filter", "message": "The response was filtered", "status": 400},
            {
                "code": None,
                "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": FILTER},
            },
            {"type": "content_policy_violation", "message": "no"},
        ],
    )
    def test_a_filtered_prompt_as_an_error(self, error):
        reading = read(400, {"error": error})
        assert (reading.reply.outcome, reading.fault) == (Outcome.FILTERED, None)
        if "innererror" in error:
            assert reading.reply.raw["content_filter_results"] == FILTER

    def test_log_probabilities_are_kept(self):
        logprobs = {"content": [{"token": "So", "logprob": -0.1, "top_logprobs": []}]}
        assert read(200, completion(logprobs=logprobs)).reply.raw["logprobs"] == logprobs

    @pytest.mark.parametrize("usage", [None, {}, 7, "many", {"prompt_tokens": "5"}])
    def test_no_usage(self, usage):
        reading = read(200, completion(usage=None) | {"usage": usage})
        assert not reading.usage_known
        assert reading.reply.usage == Usage()

    @pytest.mark.parametrize(
        "tokens", [-1, 1e30, 10**30, 2**63, math.nan, math.inf, "5", None, True, [5], {"n": 5}, 2_000_001]
    )
    @pytest.mark.parametrize("of", ["prompt_tokens", "completion_tokens"])
    def test_usage_that_cannot_be_is_kept_and_not_believed(self, of, tokens):
        usage = {"prompt_tokens": 5, "completion_tokens": 3, of: tokens}
        reading = read(200, completion(usage=None) | {"usage": usage})
        assert (reading.usage_known, reading.reply.usage) == (False, Usage())
        assert of in reading.reply.raw[completions.NO_USAGE]

    def test_usage_in_floats(self):
        body = completion(usage=None) | {"usage": {"prompt_tokens": 5.0, "completion_tokens": 2.5}}
        assert read(200, body).reply.usage == Usage(5, 3)


ERRORS = [
    (401, {"error": {"code": "invalid_api_key", "message": "Incorrect API key"}}, Fault.REFUSED),
    (401, {"statusCode": 401, "message": "Access denied due to invalid subscription key"}, Fault.REFUSED),
    (403, {"detail": "not yours"}, Fault.REFUSED),
    (404, {"error": {"code": "DeploymentNotFound", "message": "no deployment"}}, Fault.REFUSED),
    (404, {"object": "error", "message": "The model `x` does not exist.", "code": 404}, Fault.REFUSED),
    (400, {"error": {"code": "model_not_found", "message": "no model"}}, Fault.REFUSED),
    (
        429,
        {"error": {"code": "insufficient_quota", "type": "insufficient_quota", "message": "m"}},
        Fault.REFUSED,
    ),
    (429, {"error": {"message": "You exceeded your current quota, please check"}}, Fault.REFUSED),
    (400, {"error": {"code": "billing_hard_limit_reached", "message": "m"}}, Fault.REFUSED),
    (402, {"error": "Insufficient Balance"}, Fault.REFUSED),
    (307, b"", Fault.REFUSED),
    (429, {"error": {"code": "rate_limit_exceeded", "message": "slow"}}, Fault.RATE_LIMIT),
    (429, b"<html>Too many</html>", Fault.RATE_LIMIT),
    (
        429,
        {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 7 seconds."},
        Fault.RATE_LIMIT,
    ),
    (500, {"error": {"message": "The server had an error"}}, Fault.SERVER),
    (502, b"<html><h1>502 Bad Gateway</h1></html>", Fault.SERVER),
    (503, b"", Fault.SERVER),
    (408, {}, Fault.SERVER),
    (400, {"error": {"code": "context_length_exceeded", "message": "m"}}, Fault.TOO_LONG),
    (
        400,
        {"object": "error", "message": "This model's maximum context length is 4096 tokens"},
        Fault.TOO_LONG,
    ),
    (
        400,
        {"error": {"message": "litellm.ContextWindowExceededError: too long", "code": "400"}},
        Fault.TOO_LONG,
    ),
    (413, b"", Fault.TOO_LONG),
    (400, {"error": {"message": "unknown parameter"}}, Fault.REQUEST),
    (422, {"detail": [{"loc": ["body"], "msg": "field required"}]}, Fault.REQUEST),
    # Status 200 and yet no answer.
    (200, {"error": {"code": 429, "message": "slow"}}, Fault.RATE_LIMIT),
    (200, {"error": {"code": 502, "message": "upstream"}}, Fault.SERVER),
    (200, {"error": "out of memory"}, Fault.SERVER),
    (200, {"object": "error", "message": "no such model", "code": 404}, Fault.REFUSED),
    (200, completion("half", finish_reason="error"), Fault.SERVER),
    (200, completion(None, finish_reason="abort"), Fault.SERVER),
    (200, b"<html>Welcome</html>", Fault.MALFORMED),
    (200, b'{"choices": [{"message": {"content": "So', Fault.MALFORMED),
    (200, b"", Fault.MALFORMED),
    (200, b"[" * 100_000, Fault.MALFORMED),
    (200, b"\xff\xfe", Fault.MALFORMED),
    (200, [1], Fault.MALFORMED),
    (200, [], Fault.MALFORMED),
    (200, [completion()], Fault.MALFORMED),
    # Errors as lists, or as anything else.
    (401, [{"error": {"code": 401, "message": "no", "status": "UNAUTHENTICATED"}}], Fault.REFUSED),
    (404, [{"error": {"code": 404, "message": "no model", "status": "NOT_FOUND"}}], Fault.REFUSED),
    (400, [{"error": {"code": 400, "message": "API key not valid."}}], Fault.REFUSED),
    (429, [{"error": {"code": 429, "message": "no", "status": "RESOURCE_EXHAUSTED"}}], Fault.RATE_LIMIT),
    (
        429,
        [{"error": {"code": 429, "message": "You exceeded your current quota. Please retry in 27.4s."}}],
        Fault.RATE_LIMIT,
    ),
    (503, [{"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}], Fault.SERVER),
    (400, [{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}], Fault.REQUEST),
    (200, [{"error": {"code": 404, "message": "no model"}}], Fault.REFUSED),
    (400, {"error": [{"code": "model_not_found", "message": "no"}]}, Fault.REFUSED),
    (401, "Unauthorized", Fault.REFUSED),
    (401, ["no"], Fault.REFUSED),
    (404, [], Fault.REFUSED),
    (500, 7, Fault.SERVER),
    (200, {"error": {"code": "²", "message": "no"}}, Fault.SERVER),
    (200, {}, Fault.MALFORMED),
    (200, {"choices": [None]}, Fault.MALFORMED),
    (200, {"choices": "no"}, Fault.MALFORMED),
]


@pytest.mark.parametrize(("status", "body", "fault"), ERRORS)
def test_faults(status, body, fault):
    reading = read(status, body)
    assert (reading.reply.outcome, reading.fault) == (Outcome.ERROR, fault)
    assert reading.reply.raw["fault"] == fault
    assert reading.reply.raw["error"] == reading.message
    assert reading.maybe_paid == (status == 200 and (fault is Fault.MALFORMED or "choices" in str(body)))
    assert not (status >= 300 and reading.maybe_paid)


def events(*pieces, done=True, end="\n\n"):
    texts = [json.dumps(piece, ensure_ascii=False) for piece in pieces] + ["[DONE]"] * done
    return "".join(f"data: {text}{end}" for text in texts).encode()


def chunk(content=None, reason=None, logprobs=None, **more):
    """A piece of an answer as llama.cpp sends it: the first has no text, the last no choice but the usage."""
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": reason}
    choice |= {"logprobs": logprobs} if logprobs else {}
    return {"id": "chatcmpl-1", "model": "m", "object": "chat.completion.chunk", "choices": [choice]} | more


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}


def logprobs(token):
    return {"content": [{"token": token, "logprob": -0.5, "top_logprobs": []}], "refusal": None}


class TestStreams:
    def read(self, content):
        return completions.read(200, content, "text/event-stream; charset=utf-8")

    @pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
    def test_it_says_what_the_whole_answer_says(self, end):
        first = chunk()
        first["choices"][0]["delta"] = {"role": "assistant", "content": None}
        pieces = [
            first,
            chunk("So \u2028", logprobs=logprobs("So")),
            chunk("be it.", logprobs=logprobs("be")),
        ]
        streamed = self.read(b": ping\n\n" + events(*pieces, chunk(reason="stop"), USAGE, end=end))
        both = [one for token in ("So", "be") for one in logprobs(token)["content"]]
        whole = completion("So \u2028be it.", logprobs={"content": both})
        assert streamed == read(200, whole | {"model": "m"})
        assert streamed.usage_known

    def test_reasoning_and_parts(self):
        pieces = [chunk(), chunk([{"type": "text", "text": "a"}]), chunk("b", "stop")]
        pieces[0]["choices"][0]["delta"] = {"reasoning_content": "Hm"}
        reply = self.read(events(*pieces)).reply
        assert (reply.text, reply.raw["reasoning_content"]) == ("ab", "Hm")

    @pytest.mark.parametrize(
        ("content", "outcome"),
        [
            (events(chunk("half", "length")), Outcome.LENGTH),
            (events(chunk("So.", "stop"), done=False), Outcome.OK),
            (events(chunk("So.")), Outcome.OK),  # as a whole answer without a reason
            (events(chunk(None, "stop")), Outcome.EMPTY),
            (events(chunk("half"), chunk(None, "content_filter")), Outcome.FILTERED),
            (json.dumps(completion("So.")).encode(), Outcome.ERROR),
        ],
    )
    def test_outcomes(self, content, outcome):
        assert self.read(content).reply.outcome is outcome

    @pytest.mark.parametrize(
        ("content", "fault", "paid"),
        [
            (events(chunk("half"), done=False), Fault.MALFORMED, True),
            (events(chunk("half"))[:-30], Fault.MALFORMED, True),
            (events(), Fault.MALFORMED, True),
            (b"", Fault.MALFORMED, True),
            (b"data: {\n\n", Fault.MALFORMED, True),
            (events({"error": {"message": "slow down", "code": 429}}), Fault.RATE_LIMIT, False),
            (events(chunk("half"), {"error": {"message": "out of memory"}}), Fault.SERVER, True),
        ],
    )
    def test_faults(self, content, fault, paid):
        reading = self.read(content)
        assert (reading.fault, reading.maybe_paid) == (fault, paid), reading
        assert "error" not in str(content) or reading.message.count("slow") + reading.message.count("memory")

    @given(st.lists(st.recursive(
        st.none() | st.booleans() | st.text(),
        lambda entry: st.lists(entry) | st.dictionaries(
            st.sampled_from(["error", "choices", "delta", "content", "logprobs", "finish_reason"]), entry
        ),
        max_leaves=12,
    )))  # fmt: skip
    def test_none_raises(self, pieces):
        reading = self.read(events(*pieces))
        assert (reading.reply.outcome is Outcome.ERROR) == (reading.fault is not None)


@given(st.sampled_from([200, 400, 429, 500]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda entry: st.lists(entry) | st.dictionaries(
        st.sampled_from(["error", "choices", "message", "content", "code", "innererror", "usage"]),
        entry,
    ),
    max_leaves=20,
))  # fmt: skip
def test_no_answer_raises(status, body):
    reading = completions.read_json(status, body)
    assert (reading.reply.outcome is Outcome.ERROR) == (reading.fault is not None)
    json.dumps(dict(reading.reply.raw))


class TestAdvice:
    @pytest.mark.parametrize(
        ("status", "message", "word"),
        [
            (401, "", "the key is wrong"),
            (400, "API key not valid. Please pass a valid API key.", "the key is wrong"),
            (403, "", "may not use"),
            (404, "", "base_url and api_version"),
            (308, "", "correct base_url"),
            (429, "", "quota is exhausted"),
            (400, "billing hard limit", "quota is exhausted"),
            (400, "", "correct the endpoint"),
        ],
    )
    def test_says_what_to_do(self, status, message, word):
        assert word in completions.advice(status, message)


class TestRequests:
    MESSAGES = (Message("system", "Be brief."), Message("user", "Why?"))

    def test_all_settings(self):
        sampling = Sampling(0.7, 0.95, 300, ("\n", "END"), 5, top_logprobs=3)
        assert completions.body(OpenAIConfig(model="gpt"), self.MESSAGES, sampling) == {
            "model": "gpt",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
            "temperature": 0.7,
            "top_p": 0.95,
            "max_tokens": 300,
            "stop": ["\n", "END"],
            "seed": 5,
            "logprobs": True,
            "top_logprobs": 3,
        }

    def test_an_empty_system_message_is_none(self):
        messages = (Message("system", ""), Message("user", ""))
        body = completions.body(OpenAIConfig(model="gpt"), messages, Sampling())
        assert body["messages"] == [{"role": "user", "content": ""}]

    def test_parameters(self):
        body = completions.body(
            OpenAIConfig(
                model="o1",
                limit_name="max_completion_tokens",
                parameters={"temperature": None, "reasoning_effort": "low"},
            ),
            self.MESSAGES,
            Sampling(max_tokens=9),
        )
        assert body["max_completion_tokens"] == 9
        assert body["reasoning_effort"] == "low"
        assert not {"temperature", "max_tokens", "stop", "seed", "logprobs", "stream"} & body.keys()
