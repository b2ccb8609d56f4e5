"""The server's answers: those of the student in this process, in OpenAI's shapes, whatever is sent."""

import asyncio
import contextlib
import zlib

import httpx2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as text_parameters
from openai.types.chat import completion_create_params as chat_parameters

pytest.importorskip("fastapi")

from orca_jax.records import Message, Sampling
from orca_jax.serving.local import StudentEndpoint
from tests.serving.served import (
    LONG,
    NAME,
    QUESTION,
    WARM,
    Served,
    chat,
    complete,
    events,
    make_student,
    numbers,
)
from tests.serving.test_local import always

MESSAGES = [Message(**turn) for turn in QUESTION]


# Chat


@pytest.mark.parametrize("change", [{}, {"stop": ["e", "a"]}, {"top_p": 0.6}, {"temperature": 0}])
def test_a_chat_is_answered_as_by_the_student_in_this_process(client, student, change):
    body = WARM | change
    answer = chat(client, **body)
    sampling = Sampling(body["temperature"], body.get("top_p", 1), 24, tuple(body.get("stop", ())), seed=7)
    with contextlib.closing(StudentEndpoint(student)) as endpoint:
        reply = asyncio.run(endpoint.reply(MESSAGES, sampling))
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": reply.text}
    assert choice["finish_reason"] == ("length" if reply.outcome == "length" else "stop")
    assert answer["object"] == "chat.completion"
    assert answer["system_fingerprint"] == student.identity
    prompt, said = reply.usage.prompt_tokens, reply.usage.completion_tokens
    assert answer["usage"] == {
        "prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said,
    }  # fmt: skip


def test_parts_and_developers_are_text_and_system(client):
    parts = [{"type": "text", "text": text} for text in ("Be ", "brief.")]
    messages = [{"role": "developer", "content": parts}, QUESTION[1]]
    assert chat(client, messages=messages, **WARM)["choices"] == chat(client, **WARM)["choices"]


NEUTRAL = {
    "n": 1, "stop": [], "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "metadata": {},
    "store": False, "top_p": 1, "top_k": -1, "stream": False, "user": "a",
}  # fmt: skip
NEUTRAL_CHAT = {
    "tools": [], "tool_choice": "none", "functions": [], "function_call": "none", "parallel_tool_calls": True,
    "response_format": {"type": "text"}, "modalities": ["text"], "reasoning_effort": "none",
    "verbosity": "medium", "logprobs": False, "top_logprobs": 0, "safety_identifier": "a",
    "stream_options": {"include_usage": False, "include_obfuscation": False},
}  # fmt: skip


@pytest.mark.parametrize(
    ("ask", "base", "parameters", "neutral"),
    [
        (chat, {}, chat_parameters, NEUTRAL | NEUTRAL_CHAT),
        (complete, {"prompt": "a"}, text_parameters, NEUTRAL | {"echo": False, "best_of": 1, "suffix": ""}),
    ],
    ids=["chat", "text"],
)
def test_null_and_what_is_off_ask_for_nothing(client, ask, base, parameters, neutral):
    """Null in each of OpenAI's own optional parameters, those to come among them."""
    plain = ask(client, **base | WARM)["choices"]
    optional = {*parameters.CompletionCreateParamsBase.__annotations__, "to come"} - {
        "model", "messages", "prompt"
    }  # fmt: skip
    assert ask(client, **dict.fromkeys(optional) | base | WARM)["choices"] == plain
    assert ask(client, **base | WARM | neutral)["choices"] == plain


@pytest.mark.parametrize("begun", [True, False])
def test_a_request_may_hold_what_the_models_length_says(client, tokenizer, begun):
    length = client.get("/v1/models").json()["data"][0]["max_model_len"]
    prompt = [tokenizer.control_id("<s>")] * begun + [5] * 9
    complete(client, prompt=prompt, max_tokens=length - len(prompt))
    error = complete(client, 400, prompt=prompt, max_tokens=length - len(prompt) + 1)["error"]
    assert f"{length} fit in all" in error["message"]


def test_choices_of_one_seed_differ_and_repeat(client):
    four = chat(client, n=4, **WARM)["choices"]
    texts = [choice["message"]["content"] for choice in four]
    assert [choice["index"] for choice in four] == [0, 1, 2, 3]
    assert len(set(texts)) > 1
    assert chat(client, n=4, **WARM)["choices"] == four
    assert chat(client, **WARM)["choices"] == four[:1]


def test_without_a_limit_a_chat_takes_the_room_there_is(client):
    answer = chat(client, temperature=0)
    assert answer["usage"]["total_tokens"] <= 128
    assert answer["choices"][0]["finish_reason"] == "stop" or answer["usage"]["total_tokens"] == 128


def test_the_log_probabilities_of_a_chat(client, student):
    (choice,) = chat(client, logprobs=True, top_logprobs=3, **WARM)["choices"]
    (plain,) = chat(client, **WARM)["choices"]
    content = choice["logprobs"]["content"]
    assert choice["message"] == plain["message"]
    assert plain["logprobs"] is None
    assert "".join(entry["token"] for entry in content if not entry["token"].startswith("<0x")) in [
        choice["message"]["content"], "".join(e["token"] for e in content if not e["token"].startswith("<"))
    ]  # fmt: skip
    prompt = student.prompt(MESSAGES)
    (said,) = student.generator.generate(
        [prompt], max_tokens=24, temperature=1, seed=7, numbers=[zlib.crc32(prompt.tobytes())]
    )
    np.testing.assert_allclose([entry["logprob"] for entry in content], said.log_probs, atol=1e-4)
    for entry in content:
        likeliest = [one["logprob"] for one in entry["top_logprobs"]]
        assert len(likeliest) == 3
        assert likeliest == sorted(likeliest, reverse=True)


# Completions


def test_a_text_is_continued_behind_the_beginning_of_sequence(client, student, tokenizer):
    (choice,) = complete(client, prompt="the red dog", **LONG | {"max_tokens": 20})["choices"]
    ids = [tokenizer.control_id("<s>"), *tokenizer.encode("the red dog", first=True)]
    (said,) = student.generator.generate([np.array(ids, np.int32)], max_tokens=20)
    assert choice["text"] == tokenizer.decode(said.tokens.tolist())


def test_batches_are_what_each_prompt_gets_alone(client):
    prompts = ["the red dog", "a", "the river"]
    together = complete(client, prompt=prompts, n=2, **WARM)["choices"]
    alone = [complete(client, prompt=prompt, n=2, **WARM)["choices"] for prompt in prompts]
    assert [choice["index"] for choice in together] == list(range(6))
    assert [choice["text"] for choice in together] == [choice["text"] for two in alone for choice in two]


def test_the_contract_of_log_likelihoods(client, student, tokenizer):
    """What lm-eval reads: see INTEROP.md, section 6; arrays have one entry more than the prompt."""
    ids = [tokenizer.control_id("<s>"), *tokenizer.encode("the red dog", first=True)][:5]
    asked = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    others = [ids[:2], [*ids, 300, 301, 302] * 3]
    choices = complete(client, prompt=[ids, *others], **asked)["choices"]
    every = [np.array(one, np.int32) for one in (ids, *others)]
    expected = student.generator.scorer.score([one[:1] for one in every], [one[1:] for one in every])
    for one, choice, own in zip((ids, *others), choices, expected, strict=True):
        found = choice["logprobs"]
        assert [len(values) for values in found.values()] == [len(one) + 1] * 3
        assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
        np.testing.assert_allclose(found["token_logprobs"][1:-1], own.log_probs, atol=1e-4)
        assert all(found["top_logprobs"][1:])
        assert found["token_logprobs"][-1] == max(found["top_logprobs"][-1].values())
        assert choice["text"].startswith(tokenizer.decode(one))


@pytest.mark.parametrize("asked", [{"temperature": 0}, {"temperature": 1, "seed": 1}])
def test_a_reply_that_ends_at_once_has_an_entry_too(tokenizer, asked):
    """Without it, lm-eval would take the prompt's last token for the reply's, and drop it."""
    student = make_student(tokenizer)
    config, stop = student.generator.engine.config, student.stop_ids[0]
    params = always(stop, config)
    params["unembed"] *= 100
    body = {"prompt": [1, 5, 6, 7, 8], "max_tokens": 1, "echo": True, "logprobs": 1, **asked}
    with (
        Served(make_student(tokenizer, params=params)) as served,
        httpx2.Client(base_url=served.url, timeout=60) as client,
    ):
        (choice,) = complete(client, **body)["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"][-1] == "<|im_end|>"
    assert len(choice["logprobs"]["token_logprobs"]) == 6


def test_greedy_tokens_have_the_likeliest_ones_number(client, student, tokenizer):
    prompt = [tokenizer.control_id("<s>"), *tokenizer.encode("the red dog", first=True)]
    (said,) = student.generator.generate([np.array(prompt, np.int32)], max_tokens=12)
    whole = [*prompt, *said.tokens.tolist()]
    (choice,) = complete(client, prompt=whole, temperature=0, max_tokens=1, logprobs=1, echo=True)["choices"]
    found = choice["logprobs"]
    marks = [n == max(t.values()) for n, t in zip(found["token_logprobs"][1:], found["top_logprobs"][1:])]
    assert all(marks[len(prompt) - 1 :])
    assert not all(marks)


def test_ids_without_the_beginning_of_sequence_are_read_behind_it(client, tokenizer):
    ids = tokenizer.encode("the red dog", first=True)
    asked = {"temperature": 0, "max_tokens": 5, "logprobs": 2, "echo": True}
    (bare,) = complete(client, prompt=ids, **asked)["choices"]
    (whole,) = complete(client, prompt=[tokenizer.control_id("<s>"), *ids], **asked)["choices"]
    assert bare["text"] == whole["text"]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert bare["logprobs"][name] == whole["logprobs"][name][1:]


@given(
    text=st.text("ab é日😀\n", min_size=1, max_size=12),
    echo=st.booleans(),
    max_tokens=st.sampled_from([0, 1, 6]),
    logprobs=st.sampled_from([None, 0, 2]),
)
@settings(max_examples=30)
def test_texts_and_their_tokens(client, text, echo, max_tokens, logprobs):
    if not max_tokens and not echo:
        return
    body = {"prompt": text, "max_tokens": max_tokens, "echo": echo, "logprobs": logprobs, "temperature": 0}
    answer = complete(client, **body)
    (choice,) = answer["choices"]
    assert choice["text"].startswith(text if echo else "")
    assert answer["usage"]["completion_tokens"] <= max_tokens
    if logprobs is None:
        assert choice["logprobs"] is None
        return
    found = choice["logprobs"]
    spelled = "".join(token for token in found["tokens"] if not token.startswith("<"))
    assert found["tokens"]
    assert any("<0x" in token for token in found["tokens"]) or spelled.strip() == choice["text"].strip()


# Streams


@given(
    stop=st.lists(st.text("abe ", min_size=1, max_size=2), max_size=2),
    n=st.integers(1, 3),
    logprobs=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15)
def test_a_stream_says_what_the_whole_answer_does(client, stop, n, logprobs, seed):
    body = {"stop": stop, "n": n, "logprobs": logprobs, "seed": seed, "max_tokens": 40}
    whole = chat(client, **body)
    chunks = events(
        client, "/v1/chat/completions", messages=QUESTION, stream_options={"include_usage": True}, **body
    )
    texts, reasons, entries = [""] * n, {}, {}
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"]["content"]
            if choice["finish_reason"]:
                reasons[choice["index"]] = choice["finish_reason"]
                entries[choice["index"]] = choice["logprobs"]
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert [reasons[i] for i in range(n)] == [choice["finish_reason"] for choice in whole["choices"]]
    assert [bool(entries[i]) for i in range(n)] == [logprobs] * n
    assert [chunk["usage"] for chunk in chunks] == [None] * (len(chunks) - 1) + [whole["usage"]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize("prompts", ["the red dog", ["the red dog", "a"]])
def test_streams_of_completions(client, prompts):
    body = {"prompt": prompts, "echo": True, **WARM}
    texts = {}
    for chunk in events(client, "/v1/completions", **body):
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert [texts[i] for i in sorted(texts)] == [c["text"] for c in complete(client, **body)["choices"]]


def test_a_long_reply_comes_in_several_chunks(client):
    chunks = events(client, "/v1/completions", prompt="the", **LONG | {"logit_bias": None})
    assert len(chunks) > 2


# The rest


def test_models_and_health(client, student):
    (model,) = client.get("/v1/models").json()["data"]
    assert model == client.get(f"/v1/models/{NAME}").json()
    assert (model["id"], model["root"], model["max_model_len"]) == (NAME, student.identity, 128)
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/v1/models/other").status_code == 404


def test_metrics_count(client):
    before = numbers(client)
    usage = chat(client, **WARM)["usage"]
    chat(client, status=404, model="other")
    after = numbers(client)
    path = "/v1/chat/completions"
    for name, grown in (
        ("orca_prompt_tokens_total", usage["prompt_tokens"]),
        ("orca_reply_tokens_total", usage["completion_tokens"]),
        (f'orca_requests_total{{path="{path}",status="200"}}', 1),
        (f'orca_requests_total{{path="{path}",status="404"}}', 1),
        (f'orca_request_seconds_count{{path="{path}"}}', 2),
    ):
        assert after[name] - before.get(name, 0) == grown, name
    assert after["orca_rows"] == 4
    assert after["orca_sequences_running"] == after["orca_sequences_waiting"] == 0
