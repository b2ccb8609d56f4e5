"""A teacher's likeliest tokens: what an API says of an answer, matched to the student's ids and stored."""

import dataclasses

import numpy as np
import pytest

from orca_jax import artifacts
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.alternatives import NONE, OTHER, Alternatives, Collected
from orca_jax.data.tokens import Encoder, TokenStore, write_store
from orca_jax.records import Message, Outcome, Sampling, Trace
from tests.data import hf_folders

ANSWER = "The red cat takes 12 steps,\ntherefore é."
QUESTION = Message("user", "Why?")


def entry(token, log_prob, others=()):
    """A token as the API describes it; `token` is text or bytes."""
    spelled = token if isinstance(token, bytes) else token.encode()
    described = {"token": spelled.decode(errors="replace"), "bytes": list(spelled), "logprob": log_prob}
    return described | {"top_logprobs": [entry(*other) for other in others]} if others else described


def said(tokenizer, text, *, end=None):
    """What an API says of a text in the tokenizer's own pieces: `b` is always likely, `zz` no piece."""
    ids = tokenizer.encode(text, first=False)
    pieces = [tokenizer.token_bytes(i) for i in ids]
    found = [entry(piece, -0.5, [(piece, -0.5), ("b", -1.5), ("zz", -2.0)]) for piece in pieces]
    return [*found, *([] if end is None else [entry(end, -0.1, [(end, -0.1), ("b", -3.0)])])]


def trace(answer=ANSWER, entries=None, turns=()):
    extra = {} if entries is None else {"logprobs": {"content": entries}}
    return Trace(
        id="t", query_id="q", sample=0, messages=(*turns, QUESTION, Message("assistant", answer)),
        collection="c", task="t", system_message_id=None, teacher="x", sampling=Sampling(),
        outcome=Outcome.OK, extra=extra,
    )  # fmt: skip


def matched(tokenizer, one, layout="orca", top=3, supervise="all"):
    encoded = Encoder(tokenizer, layout, supervise)([one])[0]
    (found,) = Collected(tokenizer, top)([one], [encoded])
    return encoded, found


@pytest.mark.parametrize("layout", ["orca", "chatml", "llama2"])
def test_every_token_of_the_answer_gets_its_ids_and_log_probabilities(tokenizer, layout):
    """The last one too, where the API describes it; llama2's layout adds spaces around the answer."""
    turns = QUESTION, Message("assistant", "So it is.")
    encoded, found = matched(
        tokenizer, trace(entries=said(tokenizer, ANSWER, end="</s>"), turns=turns), layout
    )
    supervised = encoded.tokens[encoded.weights > 0]
    known = np.isfinite(found.log_probs).any(-1)
    assert len(found.ids) == len(found.log_probs) == len(supervised)
    described, before = len(tokenizer.encode(ANSWER, first=False)), len(encoded_turn(tokenizer, layout))
    assert not known[:before].any()
    assert known[before:].sum() in (
        [described + 1] if layout != "llama2" else range(described - 3, described)
    )
    (b,) = tokenizer.encode("b", first=False)
    rest = np.log(1 - np.exp(-0.5) - np.exp(-1.5))
    for at in np.flatnonzero(known[:-1]):
        assert found.ids[at, :2].tolist() == [supervised[at], b]
        np.testing.assert_allclose(found.log_probs[at], [-0.5, -1.5, -np.inf, rest], rtol=1e-6)
    assert known[-1]
    assert found.ids[-1, :2].tolist() == [supervised[-1], b]


def encoded_turn(tokenizer, layout):
    """The supervised tokens of the turn before."""
    encoded = Encoder(tokenizer, layout)([trace("So it is.")])[0]
    return encoded.tokens[encoded.weights > 0]


def test_only_the_likeliest_are_kept(tokenizer):
    _, found = matched(tokenizer, trace(entries=said(tokenizer, ANSWER)), top=1)
    assert found.ids.shape[1] == 1
    assert (found.log_probs[:-1, 0] == -0.5).all()
    np.testing.assert_allclose(np.exp(found.log_probs[:-1]).sum(-1), 1, rtol=1e-6)
    assert np.isneginf(found.log_probs[-1]).all()  # nobody said anything of the end


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        (None, NONE),
        ([], NONE),
        ([{"token": None}], OTHER),
        ([entry(letter, -1.0) for letter in ANSWER], OTHER),
        ([entry("Something else.", -1.0)], OTHER),
    ],
    ids=["none", "empty", "malformed", "letters", "another text"],
)
def test_what_cannot_be_matched_is_left_out_and_says_why(tokenizer, entries, why):
    assert matched(tokenizer, trace(entries=entries))[1] == why


def test_white_space_before_the_answer_costs_the_first_token_alone(tokenizer):
    """Chat templates begin an answer with a space that the student's layout may not have."""
    entries = said(tokenizer, ANSWER)
    first = bytes(entries[0]["bytes"])
    entries[0] = entry(b" " + first, -0.5, [(b" " + first, -0.5)])
    _, found = matched(tokenizer, trace(entries=entries))
    known = np.isfinite(found.log_probs).any(-1)
    assert known.tolist() == [False, *[True] * (len(entries) - 1), False]


def test_prompts_with_loss_have_none(tokenizer):
    encoded, found = matched(tokenizer, trace(entries=said(tokenizer, ANSWER)), supervise="everything")
    assert len(found.ids) == len(encoded.tokens)
    assert found.known == len(tokenizer.encode(ANSWER, first=False))


@pytest.mark.parametrize("kind", ["byte_level", "prepend", "metaspace_first"])
def test_the_bytes_of_a_texts_ids_are_the_text(kind, corpus, tmp_path):
    tokenizer = tokenizers.load(hf_folders.write_folder(tmp_path, hf_folders.KINDS[kind](corpus)))
    ids = tokenizer.encode(ANSWER, first=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == ANSWER.encode()
    assert {tokenizer.token_bytes(i) for i in tokenizer.control_ids.values()} == {b""}


def test_a_store_holds_them_compactly(tokenizer, tmp_path):
    good, none = trace(entries=said(tokenizer, ANSWER, end="</s>")), trace("It is.")
    source, encode = Collected(tokenizer, 3), Encoder(tokenizer, "orca")
    counts = write_store(tmp_path / "with", [good, none], encode, source=source)
    artifacts.Artifact(tmp_path / "with", {}, {}).finish(counts)
    supervised = len(tokenizer.encode(ANSWER, first=False)) + 1
    assert counts["alternatives"] == {
        "top": 3, "examples": 1, "tokens": supervised, "bytes_a_token": 14, "left_out": {NONE: 1},
    }  # fmt: skip
    store = TokenStore(tmp_path / "with")
    (found,) = source([good], encode([good]))
    assert store.top == 3
    assert (store[0]["teacher_ids"].dtype, store[0]["teacher_log_probs"].dtype) == (np.uint16, np.float16)
    np.testing.assert_array_equal(store[0]["teacher_ids"], found.ids)
    np.testing.assert_allclose(store[0]["teacher_log_probs"], found.log_probs, atol=2e-3)
    assert store[1]["teacher_ids"].shape == (0, 3)


def test_a_store_without_them_has_the_bytes_it_always_had(tokenizer, tmp_path):
    """Log-probabilities that come with a trace change nothing unless they are asked for."""
    given = [trace(entries=said(tokenizer, ANSWER)), trace("It is.")]
    for name, traces in (("a", given), ("b", [dataclasses.replace(one, extra={}) for one in given])):
        write_store(tmp_path / name, traces, Encoder(tokenizer, "orca"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert not any(b"teacher_ids" in content for content in files.values())


def test_a_rest_that_is_rounding_counts_as_none():
    found = Alternatives.unknown(2, 2)
    found.set(0, np.array([4, 5]), np.log(np.array([0.75, 0.25], np.float32)))
    assert found.log_probs[0, 2] == -np.inf
    assert found.known == 1
