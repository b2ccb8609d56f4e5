"""Layouts: a prompt's ids start the ids trained on, and control tokens come from layouts only."""

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.config import Supervise
from orca_jax.data import layouts
from orca_jax.data.layouts import LAYOUTS, LayoutError, Piece, encode, joined
from orca_jax.data.tokenizer import BOS, EOS, PAD, TokenizerError, from_sentencepiece
from orca_jax.records import Message

PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=15)
SPELLINGS = [
    "</s>",
    "<s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "[[PAD]]",
    "### Human:\n",
    "\n\n",
    " ",
    "assistant",
]
TEXT = st.lists(st.sampled_from(SPELLINGS) | PLAIN, max_size=4).map("".join)
STOP_TOKENS = {"orca": EOS, "chatml": "<|im_end|>", "llama2": EOS, "vicuna": EOS, "plain": EOS}
ANSWER_FRAMES = {
    "orca": ("", ""), "chatml": ("", ""), "llama2": (" ", " "), "vicuna": (" ", ""), "plain": ("", "")
}  # fmt: skip
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS)


@st.composite
def conversations(draw, text=TEXT):
    """One to three exchanges, with a system message or none."""
    system = [Message("system", draw(text))] if draw(st.booleans()) else []
    turns = ("user", "assistant") * draw(st.integers(1, 3))
    return [*system, *(Message(role, draw(text)) for role in turns)]


def exchange(answer="blue", system="Be brief."):
    return [Message("system", system), Message("user", "What is it?"), Message("assistant", answer)]


def answer_ids(tokenizer, layout, answer):
    """The ids of an answer, with what the layout writes around it."""
    before, after = ANSWER_FRAMES[layout]
    return tokenizer.encode(before + answer + after, first=False)


def prompts(messages):
    """The conversation up to each of the user's turns."""
    return [messages[: i + 1] for i, message in enumerate(messages) if message.role == "user"]


@EVERY_LAYOUT
@given(messages=conversations())
def test_a_prompts_ids_are_the_start_and_then_come_answer_and_stop_token(layout, tokenizer, messages):
    trained = encode(messages, layout, tokenizer)
    stop = tokenizer.control_id(STOP_TOKENS[layout])
    for prompt in prompts(messages):
        answer = answer_ids(tokenizer, layout, messages[len(prompt)].content)
        met = encode(prompt, layout, tokenizer).tokens
        np.testing.assert_array_equal(met, trained.tokens[: len(met)])
        after = slice(len(met), None)
        assert trained.tokens[after][: len(answer) + 1].tolist() == [*answer, stop]
        assert trained.weights[after][: len(answer) + 1].all()


@EVERY_LAYOUT
@given(messages=conversations())
def test_only_answers_and_their_ends_are_supervised(layout, tokenizer, messages):
    encoded = encode(messages, layout, tokenizer)
    answers = [m.content for m in messages if m.role == "assistant"]
    expected = sum(len(answer_ids(tokenizer, layout, answer)) + 1 for answer in answers)
    assert encoded.weights.sum() == expected
    assert set(encoded.roles[encoded.weights > 0]) == {layouts.ROLE_NAMES.index("assistant")}
    assert not encoded.weights[: len(encode(prompts(messages)[0], layout, tokenizer).tokens)].any()


@EVERY_LAYOUT
@given(messages=conversations())
def test_control_tokens_cannot_be_injected(layout, tokenizer, messages):
    """As many control tokens, in the same order, as when nobody says anything."""
    silent = [Message(message.role, "") for message in messages]
    control = set(tokenizer.control_ids.values())

    def controls(conversation):
        return [i for i in encode(conversation, layout, tokenizer).tokens.tolist() if i in control]

    assert controls(messages) == controls(silent)


@EVERY_LAYOUT
@given(messages=conversations())
def test_every_word_that_was_said_is_in_the_ids(layout, tokenizer, messages):
    text = tokenizer.decode(encode(messages, layout, tokenizer).tokens.tolist())
    for message in messages:
        assert message.content in text
        text = text[text.index(message.content) + len(message.content) :]


@EVERY_LAYOUT
@given(messages=conversations())
def test_joined_text_is_tokenised_once(layout, tokenizer, messages):
    pieces = LAYOUTS[layout](messages)
    runs = list(joined(pieces))
    for left, right in itertools.pairwise(runs):
        assert left.control or right.control or left.loss != right.loss
    assert "".join(p.text for p in runs) == "".join(p.text for p in pieces)
    first = next(i for i, run in enumerate(runs) if not run.control)
    ids = []
    for i, run in enumerate(runs):
        ids += (
            [tokenizer.control_id(run.text)] if run.control else tokenizer.encode(run.text, first=i == first)
        )
    assert encode(messages, layout, tokenizer).tokens.tolist() == ids


@EVERY_LAYOUT
def test_arrays_are_aligned_and_typed(layout, tokenizer):
    encoded = encode(exchange(), layout, tokenizer)
    assert (encoded.tokens.dtype, encoded.weights.dtype, encoded.roles.dtype) == (
        np.int32,
        np.float32,
        np.int8,
    )
    assert encoded.tokens.shape == encoded.weights.shape == encoded.roles.shape
    assert encoded.tokens[0] == tokenizer.control_id(BOS)


@EVERY_LAYOUT
def test_no_system_message_is_an_empty_one(layout, tokenizer):
    without, empty = exchange()[1:], exchange(system="")
    np.testing.assert_array_equal(
        encode(without, layout, tokenizer).tokens, encode(empty, layout, tokenizer).tokens
    )


@EVERY_LAYOUT
def test_roles_follow_the_turns(layout, tokenizer):
    roles = encode(exchange(), layout, tokenizer).roles
    assert [role for role, _ in itertools.groupby(roles)] in ([0, 1, 2], [0, 2])


def test_orca_writes_the_papers_headers():
    pieces = LAYOUTS["orca"]([*exchange(), Message("user", "Sure?")])
    assert "".join(piece.text for piece in pieces) == (
        f"{BOS}### System:\nBe brief.\n\n### Human:\nWhat is it?\n\n### Assistant:\nblue{EOS}"
        "\n\n### Human:\nSure?\n\n### Assistant:\n"
    )


def test_orca_leaves_a_bare_header_for_an_empty_system_message():
    text = "".join(piece.text for piece in LAYOUTS["orca"](exchange(system="")))
    assert text.startswith(f"{BOS}### System:\n### Human:\n")


def test_chatml_writes_every_turn_between_its_control_tokens():
    pieces = LAYOUTS["chatml"]([*exchange(), Message("user", "Sure?")])
    assert "".join(piece.text for piece in pieces) == (
        f"{BOS}<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\nblue<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    spelled = {piece.text for piece in pieces if piece.control}
    assert spelled == {BOS, "<|im_start|>", "<|im_end|>"}


def test_llama2_writes_every_exchange_as_a_sequence():
    pieces = LAYOUTS["llama2"]([*exchange(), Message("user", "Sure?")])
    assert "".join(piece.text for piece in pieces) == (
        f"{BOS}[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat is it? [/INST] blue {EOS}"
        f"{BOS} [INST] Sure? [/INST]"
    )
    alone = "".join(piece.text for piece in LAYOUTS["llama2"](exchange(system="")))
    assert alone == f"{BOS}[INST] What is it? [/INST] blue {EOS}"


@given(messages=conversations())
def test_llama2s_exchanges_are_tokenised_as_texts_of_their_own(tokenizer, messages):
    """As the reference does: beginning, the text with SentencePiece's leading space, end."""
    system = messages[0].content if messages[0].role == "system" else ""
    spoken = messages[messages[0].role == "system" :]
    ids, opening = [], f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    for user, answer in zip(spoken[::2], spoken[1::2]):
        ids += [tokenizer.control_id(BOS)]
        ids += tokenizer.encode(f"[INST] {opening}{user.content} [/INST]", first=True)
        ids += [*tokenizer.encode(f" {answer.content} ", first=False), tokenizer.control_id(EOS)]
        opening = ""
    assert encode(messages, "llama2", tokenizer).tokens.tolist() == ids


def test_vicuna_writes_its_sentence_and_headers():
    pieces = LAYOUTS["vicuna"]([*exchange(), Message("user", "Sure?")])
    assert "".join(piece.text for piece in pieces) == (
        f"{BOS}Be brief. USER: What is it? ASSISTANT: blue{EOS}USER: Sure? ASSISTANT:"
    )
    text = "".join(piece.text for piece in LAYOUTS["vicuna"](exchange(system="")))
    assert text == f"{BOS}{layouts.VICUNA_SYSTEM} USER: What is it? ASSISTANT: blue{EOS}"


def test_plain_writes_the_turns_alone():
    text = "".join(piece.text for piece in LAYOUTS["plain"]([*exchange(), Message("user", "Sure?")]))
    assert text == f"{BOS}Be brief.\nWhat is it?\nblue{EOS}Sure?\n"


@EVERY_LAYOUT
@given(messages=conversations())
def test_loss_on_the_last_answer_only_or_on_everything(layout, tokenizer, messages):
    every, last, all_of_it = (encode(messages, layout, tokenizer, one) for one in get_args(Supervise))
    np.testing.assert_array_equal(last.tokens, every.tokens)
    np.testing.assert_array_equal(all_of_it.tokens, every.tokens)
    assert all_of_it.weights.all()
    np.testing.assert_array_equal(last.roles, every.roles)
    prompt = len(encode(messages[:-1], layout, tokenizer).tokens)
    np.testing.assert_array_equal(last.weights, every.weights * (np.arange(len(every.tokens)) >= prompt))
    assert last.weights[prompt:].all()


@EVERY_LAYOUT
@pytest.mark.parametrize("supervise", get_args(Supervise))
@given(messages=conversations(), data=st.data())
@settings(max_examples=10)
def test_an_answers_loss_is_scaled_by_its_weight(layout, supervise, tokenizer, messages, data):
    plain = encode(messages, layout, tokenizer, supervise)
    expected, weighted = plain.weights.copy(), list(messages)
    for place, message in enumerate(messages):
        if message.role == "assistant":
            start, end = (len(encode(messages[:n], layout, tokenizer).tokens) for n in (place, place + 1))
            weight = data.draw(st.sampled_from((0.0, 0.5, 1.0)))
            weighted[place] = Message("assistant", message.content, weight)
            expected[start:end] *= weight
    scaled = encode(weighted, layout, tokenizer, supervise)
    np.testing.assert_array_equal(scaled.tokens, plain.tokens)
    np.testing.assert_array_equal(scaled.weights, expected)
    assert scaled.weights.dtype == np.float32


def test_a_prompt_has_no_last_answer_to_supervise(tokenizer):
    assert not encode(exchange()[:-1], "orca", tokenizer, "last").weights.any()


@EVERY_LAYOUT
@given(answer=TEXT)
@settings(max_examples=20)
def test_a_reply_is_the_answer_again(layout, tokenizer, answer):
    encoded = encode(exchange(answer=answer), layout, tokenizer)
    reply = tokenizer.decode(encoded.tokens[encoded.weights > 0].tolist())
    before, after = layouts.answer_frame(layout, tokenizer)
    assert reply.removeprefix(before).removesuffix(after) == answer


def test_joined_keeps_supervised_text_apart():
    pieces = [
        Piece("a", "user"),
        Piece("b", "user"),
        Piece("c", "assistant", 1.0),
        Piece("d", "assistant", 1.0),
    ]
    assert [piece.text for piece in joined(pieces)] == ["ab", "cd"]
    assert list(joined([])) == []


@pytest.mark.parametrize(
    "roles",
    [[], ["system"], ["assistant"], ["user", "user"], ["user", "system"], ["system", "system", "user"]],
    ids=lambda roles: "-".join(roles) or "nothing",
)
def test_turns_out_of_order_are_refused(tokenizer, roles):
    with pytest.raises(LayoutError, match=", ".join(roles) or "nothing"):
        encode([Message(role, "x") for role in roles], "orca", tokenizer)


def test_an_unknown_layout_is_named_with_the_known_ones(tokenizer):
    with pytest.raises(LayoutError, match="'alpaca'; known: orca, chatml, llama2, vicuna, plain, template"):
        encode(exchange(), "alpaca", tokenizer)


def test_a_tokenizer_without_the_layouts_control_tokens_is_refused(tokenizer):
    with pytest.raises(TokenizerError, match=r"no control token '<\|im_start\|>'"):
        encode(exchange(), "chatml", from_sentencepiece(tokenizer.model, (PAD,)))


@EVERY_LAYOUT
def test_the_end_and_the_frame_of_answers_are_found(layout, tokenizer):
    assert layouts.stop_ids(layout, tokenizer) == (tokenizer.control_id(STOP_TOKENS[layout]),)
    assert layouts.answer_frame(layout, tokenizer) == ANSWER_FRAMES[layout]


def test_every_layout_says_what_it_needs():
    assert set(layouts.CONTROL_TOKENS) == {*LAYOUTS, layouts.TEMPLATE}
    for layout in LAYOUTS:
        tokens = layouts.CONTROL_TOKENS[layout]
        used = {p.text for p in LAYOUTS[layout](exchange()) if p.control} - {BOS, EOS}
        assert used <= set(tokens)
        assert STOP_TOKENS[layout] in {*tokens, EOS}
