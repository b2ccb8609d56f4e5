"""Which outcome or fault an answer is, in the forms of OpenAI, Azure and the servers beside them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.asking import completions
from orca_jax.asking.endpoint import Fault
from orca_jax.records import Message, Outcome, Sampling, Usage
from tests.asking.server import completion

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
            (completion("So.", finish_reason="eos"), Outcome.OK, "So."),
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

    @pytest.mark.parametrize(
        "usage", [None, {}, {"prompt_tokens": "5"}, {"prompt_tokens": -1, "completion_tokens": 1}]
    )
    def test_no_usage(self, usage):
        reading = read(200, completion(usage=None) | {"usage": usage})
        assert not reading.usage_known
        assert reading.reply.usage == Usage()


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
        assert completions.body("gpt", self.MESSAGES, sampling) == {
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
        assert completions.body("gpt", messages, Sampling())["messages"] == [{"role": "user", "content": ""}]

    def test_parameters(self):
        body = completions.body(
            "o1",
            self.MESSAGES,
            Sampling(max_tokens=9),
            limit_name="max_completion_tokens",
            parameters={"temperature": None, "reasoning_effort": "low"},
        )
        assert body["max_completion_tokens"] == 9
        assert body["reasoning_effort"] == "low"
        assert not {"temperature", "max_tokens", "stop", "seed", "logprobs"} & body.keys()
