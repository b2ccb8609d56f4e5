"""Tokenizers: what is encoded is decoded, and no text spells a control token."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.data.tokenizer import BOS, EOS, PAD, Tokenizer, TokenizerError, load, train

# SentencePiece writes a space as U+2581, so that character itself comes back as a space.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=30)
SPELLINGS = ["</s>", "<s>", "<unk>", "[[PAD]]", "<|im_start|>", "<|im_end|>", "<0x0A>", "▁</s>"]


@given(text=TEXT)
@settings(max_examples=200)
def test_a_continuing_text_is_decoded_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, first=False)) == text


@given(text=TEXT.filter(bool))
@settings(max_examples=50)
def test_only_the_first_text_gets_a_leading_space(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, first=True)) == f" {text}"


@given(parts=st.lists(st.sampled_from(SPELLINGS) | TEXT, max_size=5), first=st.booleans())
@settings(max_examples=200)
def test_no_text_spells_a_control_token(tokenizer, parts, first):
    ids = tokenizer.encode("".join(parts), first=first)
    assert not set(ids) & set(tokenizer.control_ids.values())


def test_digits_are_single_pieces(tokenizer):
    assert len(tokenizer.encode("2048", first=False)) == 4


def test_known_words_take_fewer_ids_than_letters(tokenizer):
    assert len(tokenizer.encode(" therefore the house", first=False)) < 10


def test_vocabulary_counts_control_tokens(tokenizer):
    names = ("<|im_end|>", "<|im_start|>", PAD)
    assert tokenizer.vocab_size == 400
    assert tokenizer.control_tokens == names
    assert [tokenizer.control_id(name) for name in names] == [397, 398, 399]
    assert tokenizer.pad_id == tokenizer.control_id(PAD)


def test_control_tokens_are_shown_by_name_and_left_out_of_text(tokenizer):
    assert tokenizer.token_text(tokenizer.pad_id) == PAD
    assert tokenizer.token_text(tokenizer.control_id(EOS)) == EOS
    ids = [tokenizer.control_id(BOS), *tokenizer.encode("a cat", first=False), tokenizer.pad_id]
    assert tokenizer.decode(ids) == "a cat"


def test_training_is_deterministic(corpus, tokenizer):
    assert train(corpus, 400, tokenizer.control_tokens) == tokenizer


def test_a_saved_tokenizer_is_loaded_unchanged(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    assert again == tokenizer
    assert again.fingerprint == tokenizer.fingerprint


def test_a_bare_model_gets_the_given_control_tokens(tokenizer, tmp_path):
    path = tmp_path / "any.model"
    path.write_bytes(tokenizer.model)
    assert load(path).control_tokens == (PAD,)
    assert load(path, [PAD, "<|x|>"]).control_id("<|x|>") == load(path).vocab_size


def test_a_tokenizer_can_be_sent_to_another_process(tokenizer):
    tokenizer.encode("warm", first=False)
    assert pickle.loads(pickle.dumps(tokenizer)).encode("a cat", first=True) == tokenizer.encode(
        "a cat", first=True
    )


def test_fingerprint_depends_on_the_control_tokens(tokenizer):
    assert Tokenizer(tokenizer.model, (PAD,)).fingerprint != tokenizer.fingerprint


def test_an_unknown_control_token_is_named(tokenizer):
    with pytest.raises(TokenizerError, match=r"no control token '<\|other\|>'"):
        tokenizer.control_id("<|other|>")


def test_a_tokenizer_needs_a_pad_token(tokenizer):
    with pytest.raises(TokenizerError, match="lack the pad token"):
        Tokenizer(tokenizer.model, ("<|x|>",))


def test_an_absent_model_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"no SentencePiece model at .*none\.model"):
        load(tmp_path / "none.model")
    with pytest.raises(TokenizerError, match=r"no SentencePiece model at .*tokenizer\.model"):
        load(tmp_path)


def test_a_damaged_model_is_named(tmp_path):
    path = tmp_path / "broken.model"
    path.write_bytes(b"no protocol buffer at all")
    with pytest.raises(TokenizerError, match=r"broken\.model cannot be used as a SentencePiece model"):
        load(path)


def test_a_folder_without_control_tokens_is_named(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "control_tokens.json").unlink()
    with pytest.raises(TokenizerError, match=r"control_tokens\.json"):
        load(tmp_path)


@pytest.mark.parametrize("vocab_size", [100, 30_000])
def test_texts_that_do_not_fit_the_vocabulary_are_refused(corpus, vocab_size):
    with pytest.raises(TokenizerError, match=f"cannot train {vocab_size} ids"):
        train(corpus[:20], vocab_size)


@pytest.fixture(scope="module")
def mistral(shared_data):
    return load(shared_data / "tokenizer/mistral_v1_32000.model")


@pytest.mark.realdata
def test_one_pad_token_makes_32001_ids(mistral):
    """Paper, section 3.2."""
    assert (mistral.vocab_size, mistral.pad_id) == (32_001, 32_000)


@pytest.mark.realdata
def test_real_conversations_are_decoded_as_they_were(mistral, shared_data):
    lines = (shared_data / "openorca/gpt4_600.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)[key] for line in lines for key in ("system_prompt", "question", "response")]
    assert len(texts) == 1800
    assert [text for text in texts if mistral.decode(mistral.encode(text, first=False)) != text] == []


@pytest.mark.realdata
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_real_model_spells_no_control_token_either(mistral, spelling):
    ids = mistral.encode(f"a {spelling} b", first=False)
    assert not set(ids) & set(mistral.control_ids.values())
