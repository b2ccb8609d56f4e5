"""Other people's clients against the server: openai's, lm-eval's, and our own collection and evaluation."""

import asyncio
import functools
import json
import os
import subprocess

import numpy as np
import openai
import pytest
from openai import types

pytest.importorskip("fastapi")

from orca_jax.config_teachers import Limits, OpenAIConfig
from orca_jax.data import tokenizer_export
from orca_jax.evaluation import run as evaluation_run
from orca_jax.evaluation.benchmarks.base import Question
from orca_jax.records import Message, Outcome, Sampling
from orca_jax.teachers.collect import collect_all
from orca_jax.teachers.endpoint import Request
from orca_jax.teachers.ledger import Ledger
from orca_jax.teachers.openai import OpenAIEndpoint
from orca_jax.teachers.pool import Pool
from tests.serving.served import NAME, QUESTION, WARM, Served, chat, complete, events

MESSAGES = tuple(Message(**turn) for turn in QUESTION)


@pytest.fixture(scope="module")
def settings(served):
    return {"base_url": f"{served.url}/v1", "api_key": "none", "max_retries": 0}


# openai


def test_openai(client, settings):
    text = chat(client, **WARM)["choices"][0]["message"]["content"]
    with openai.OpenAI(**settings) as openai_client:
        assert [model.id for model in openai_client.models.list()] == [NAME]
        answer = openai_client.chat.completions.create(model=NAME, messages=QUESTION, **WARM)
        stream = openai_client.chat.completions.create(model=NAME, messages=QUESTION, stream=True, **WARM)
        streamed = "".join(chunk.choices[0].delta.content for chunk in stream)
        completed = openai_client.completions.create(model=NAME, prompt=[1, 7, 8], logprobs=2, **WARM)
        pieces = openai_client.completions.create(model=NAME, prompt=[1, 7, 8], stream=True, **WARM)
        joined = "".join(chunk.choices[0].text for chunk in pieces)
    assert answer.choices[0].message.content == streamed == text
    assert completed.choices[0].text == joined
    assert len(completed.choices[0].logprobs.token_logprobs) >= completed.usage.completion_tokens > 0


def test_replies_and_events_have_the_types_that_openai_publishes(client):
    """Its client does not check what it reads."""
    types.chat.ChatCompletion.model_validate(chat(client, logprobs=True, top_logprobs=2, n=2, **WARM))
    text = {"prompt": ["a", "b"], "logprobs": 2, **WARM}
    types.Completion.model_validate(complete(client, **text))
    types.Model.model_validate(client.get(f"/v1/models/{NAME}").json())
    for event in events(client, "/v1/chat/completions", messages=QUESTION, logprobs=True, **WARM):
        types.chat.ChatCompletionChunk.model_validate(event)
    types.ErrorObject.model_validate(chat(client, 400, n=0)["error"])


def test_a_reply_is_sent_back_as_a_turn(settings):
    """The client's own dumps of a reply, with the nulls of all that it has not."""
    with openai.OpenAI(**settings) as openai_client:
        ask = functools.partial(openai_client.chat.completions.create, model=NAME, **WARM)
        message = ask(messages=QUESTION).choices[0].message
        with openai_client.chat.completions.stream(model=NAME, messages=QUESTION, **WARM) as stream:
            *_, _ = stream
            streamed = stream.current_completion_snapshot.choices[0].message
        plain = {"role": "assistant", "content": message.content}
        turns = [plain, message, message.model_dump(), message.to_dict(), streamed.model_dump()]
        answers = [ask(messages=[*QUESTION, turn, QUESTION[1]]).choices[0].message for turn in turns]
        silent = [ask(messages=[*QUESTION, plain | {"content": c}, QUESTION[1]]) for c in ("", None)]
    assert answers == answers[:1] * len(turns)
    assert silent[0].choices == silent[1].choices
    assert {"refusal", "tool_calls", "audio"} < {name for name, value in turns[2].items() if value is None}


def test_openai_async(client, settings):
    expected = [chat(client, **WARM | {"seed": n})["choices"][0]["message"]["content"] for n in range(6)]

    async def one(openai_client, seed):
        stream = await openai_client.chat.completions.create(
            model=NAME, messages=QUESTION, stream=seed % 2 == 0, **WARM | {"seed": seed}
        )
        if seed % 2:
            return stream.choices[0].message.content
        return "".join([chunk.choices[0].delta.content async for chunk in stream])

    async def all_of_them():
        async with openai.AsyncOpenAI(**settings) as openai_client:
            return await asyncio.gather(*(one(openai_client, seed) for seed in range(6)))

    assert asyncio.run(all_of_them()) == expected


def test_openai_knows_what_went_wrong(student, settings):
    with openai.OpenAI(**settings) as openai_client:
        with pytest.raises(openai.BadRequestError, match="must be the user's"):
            openai_client.chat.completions.create(model=NAME, messages=QUESTION[:1])
        with pytest.raises(openai.NotFoundError):
            openai_client.chat.completions.create(model="gpt-4", messages=QUESTION)
    token = "a token that is long"
    with Served(student, token=token) as served:
        base_url = f"{served.url}/v1"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=base_url, api_key="wrong").models.list()
        assert openai.OpenAI(base_url=base_url, api_key=token).models.list().data


# Our own


@pytest.fixture
def endpoint(served):
    endpoint = OpenAIEndpoint(OpenAIConfig(model=NAME, base_url=f"{served.url}/v1", key_variable=""))
    return Pool(NAME, [(endpoint, Limits())])


def test_collection_asks_it(endpoint, student, tmp_path):
    sampling = Sampling(max_tokens=8, seed=3)
    requests = [Request((Message("user", f"Is {n} red?"),), sampling) for n in range(7)]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        replies = collect_all(endpoint, requests, ledger, concurrency=5)
    expected = student.answer([request.messages for request in requests], sampling)
    assert [(r.outcome, r.text, r.usage) for r in replies] == [(r.outcome, r.text, r.usage) for r in expected]


def test_an_evaluation_asks_it(endpoint, student, tmp_path):
    questions = [
        Question(benchmark="b", task="t", id=str(n), mode="m", text=f"Is {n} red?", target="no")
        for n in range(5)
    ]

    def answer(conversations, sampling, numbers):
        async def all_of_them():
            return await asyncio.gather(*(endpoint.reply(one, sampling) for one in conversations))

        return enumerate(asyncio.run(all_of_them()))

    asked = {"sampling": Sampling(max_tokens=8), "seed": 0, "system_message_id": 1, "system_text": ""}
    served = evaluation_run.collect_replies(questions, answer, tmp_path / "served", round_size=2, **asked)

    def alone(conversations, sampling, numbers):
        return student.as_finished(conversations, sampling, numbers=numbers)

    here = evaluation_run.collect_replies(questions, alone, tmp_path / "here", round_size=2, **asked)
    assert [reply.text for reply in served] == [reply.text for reply in here]
    assert all(reply.outcome is not Outcome.ERROR for reply in served)


# lm-eval

CHOICES = """\
task: local_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{gold}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
GENERATION = """\
task: local_generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["e", "</s>"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def documents():
    """Questions with four choices, of which the random student finds no more than chance."""
    random = np.random.default_rng(0)
    words = ["the", "red", "dog", "house", "answer", "because", "sees", "river"]
    for n in range(24):
        choices = [" ".join(random.choice(words, random.integers(1, 4))) for _ in range(4)]
        question = f"The {' '.join(random.choice(words, 5))}?"
        yield {"question": question, "choices": choices, "gold": n % 4, "answer": "e"}


@pytest.fixture(scope="module")
def lm_eval():
    """The interpreter of an environment with lm_eval[api] and transformers."""
    python = os.environ.get("LM_EVAL_PYTHON")
    if not python:
        pytest.skip(
            "put the interpreter of an environment with lm_eval[api] and transformers into LM_EVAL_PYTHON"
        )
    return python


@pytest.fixture(scope="module")
def samples(lm_eval, student, tmp_path_factory):
    """What lm-eval got and scored, by task and document; the documents' answers are every other reply."""
    folder = tmp_path_factory.mktemp("lm_eval")
    rows = list(documents())
    for row, text in zip(rows[::2], replies(student, [row["question"] for row in rows[::2]])):
        row["answer"] = text
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("choices", CHOICES), ("generation", GENERATION)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    tokenizer_export.write(student.tokenizer, student.layout, folder / "tokenizer", model_max_length=128)
    with Served(student) as served:
        arguments = (
            f"model={NAME},base_url={served.url}/v1/completions,tokenizer={folder / 'tokenizer'},"
            "max_length=128,num_concurrent=3"
        )
        command = [
            lm_eval, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments,
            "--tasks", "local_choices,local_generation", "--include_path", folder, "--log_samples",
            "--output_path", folder / "out",
        ]  # fmt: skip
        environment = os.environ | {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        ended = subprocess.run(
            list(map(str, command)), env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = {}
    for path in folder.glob("out/**/samples_local_*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name.split("_")[2]] = sorted(lines, key=lambda line: line["doc_id"])
    return found


def prompt_ids(student, text):
    tokenizer = student.tokenizer
    return np.array([tokenizer.bos_id, *tokenizer.encode(text, first=True)], np.int32)


def replies(student, questions):
    """What the student says in this process; `until` ends it."""
    generated = student.generator.generate([prompt_ids(student, text) for text in questions], max_tokens=12)
    return [student.tokenizer.decode(one.tokens.tolist()).partition("e")[0] for one in generated]


@pytest.mark.slow
def test_lm_evals_log_likelihoods_are_those_of_this_process(samples, student):
    rows = list(documents())
    assert len(samples["choices"]) == len(rows)
    for row, sample in zip(rows, samples["choices"], strict=True):
        prompt = prompt_ids(student, row["question"])
        wholes = [prompt_ids(student, f"{row['question']} {choice}") for choice in row["choices"]]
        scores = student.generator.scorer.score([prompt] * 4, [whole[len(prompt) :] for whole in wholes])
        found = [resp[0] for resp in sample["resps"]]
        np.testing.assert_allclose([float(one[0]) for one in found], [s.total for s in scores], atol=1e-3)
        assert [str(one[1]) for one in found] == [str(score.greedy) for score in scores]
        best = int(np.argmax([score.total for score in scores]))
        shares = [score.total / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        assert sample["acc"] == (best == row["gold"])
        assert sample["acc_norm"] == (int(np.argmax(shares)) == row["gold"])


@pytest.mark.slow
def test_lm_evals_generations_are_those_of_this_process(samples, student):
    expected = replies(student, [row["question"] for row in documents()])
    assert [sample["resps"][0][0] for sample in samples["generation"]] == expected
    assert sum(sample["exact_match"] for sample in samples["generation"]) >= 12
