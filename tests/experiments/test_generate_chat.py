"""A chat keeps its history, streams its replies and obeys its commands."""

import dataclasses

import pytest

from orca_jax.experiments.generate import HELP, Chat
from orca_jax.records import Message, Sampling
from orca_jax.serving.local import LocalStudent
from tests.student.students import SMALL, make_params

SAMPLING = Sampling(max_tokens=12, temperature=1.0, seed=1)


@pytest.fixture(scope="module")
def student(tokenizer):
    config = dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size)
    sizes = {"batch_size": 4, "max_length": 256}
    return LocalStudent(make_params(config), config, tokenizer, "orca", checkpoint="c", **sizes)


@pytest.fixture
def chat(student):
    return Chat(student, SAMPLING, system="Be brief.")


def test_a_reply_is_streamed_and_kept(chat, student):
    said = "".join(chat.reply("Is it red?")).removesuffix(" [cut off by --max_tokens]")
    asked = [Message("system", "Be brief."), Message("user", "Is it red?")]
    replies = student.as_finished([asked], SAMPLING, numbers=[len(asked)])
    ((_, reply),) = replies
    assert said == reply.text
    assert chat.messages == [*asked, Message("assistant", reply.text)]


def test_the_next_question_comes_behind_what_was_said(chat):
    for question in ("Is it red?", "Why?"):
        "".join(chat.reply(question))
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_a_question_without_room_leaves_the_history_as_it_was(chat):
    before = list(chat.messages)
    assert "exceeds 256 tokens" in "".join(chat.reply("why " * 300))
    assert chat.messages == before


def test_commands(chat):
    written = []
    typed = [
        "",
        "Hello",
        "/system Be long.",
        "/nonsense",
        "/system 7",
        "/system 99",
        "/reset",
        "/quit",
        "never",
    ]
    chat.run(typed, written.append)
    said = "".join(written)
    for words in ("[system message: Be long.]", HELP, "[no system message 99", "justify"):
        assert words in said
    assert [message.role for message in chat.messages] == ["system"]


def test_an_interrupted_reply_ends_alone(chat, monkeypatch):
    stream, written = chat.student.stream, []

    def interrupted(messages, *rest, **settings):
        with_delta = stream(messages, *rest, **settings)
        yield next(with_delta)
        with_delta.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(chat.student, "stream", interrupted)
    chat.run(["Hello", "/reset"], written.append)
    assert " [interrupted]" in written
    assert "[system message: Be brief.]" in written
    assert not chat.student.generator.engine.busy
