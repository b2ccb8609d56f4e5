"""Tokenizers: what is encoded is decoded, and no text spells a control token."""

import io
import json
import pickle
import re
import tracemalloc

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.tokenizer import (
    BOS,
    CONTROL_FILE,
    EOS,
    PAD,
    TokenizerError,
    from_sentencepiece,
    load,
    train,
)

SPELLINGS = ["</s>", "<s>", "<unk>", "[[PAD]]", "<|im_start|>", "<|im_end|>", "<0x0A>", "▁</s>", " <s> "]
RUNS = st.tuples(st.sampled_from([" ", "a", "ab", " a", "-", "\n", "the ", "🎉"]), st.integers(1, 40))
TEXT = st.lists(
    st.text(st.characters(codec="utf-8"), max_size=12) | RUNS.map(lambda run: run[0] * run[1]), max_size=5
).map("".join)
SPELLED = st.lists(st.sampled_from(SPELLINGS) | TEXT, max_size=5).map("".join)
TRICKY = [
    "",
    " ",
    "  ",
    " leading",
    "   three",
    "trailing  ",
    "▁",
    "▁▁a",
    "\n\n a\tb\r\n",
    "naïve façade, größer, Ελληνικά, русский, العربية, हिन्दी, 日本語テキスト, 한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 e\u0301 \u200b\ufeff\x00\x7f",
    *("x" + " " * n + "y" for n in range(1, 70)),
    *(" " * n for n in range(1, 70)),
    *(letter * n for letter in "-=*.a_#0\\" for n in range(2, 40)),
    *SPELLINGS,
]
# SentencePiece writes a space as U+2581, so that character itself comes back as a space.
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=30)
# ModelProto{normalizer_spec(3){add_dummy_prefix(3): false}}: protobuf merges messages set end to end.
NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


def with_pieces(tokenizer, scores):
    """The tokenizer with other pieces than its own: `scores` of each, and its control and byte pieces."""

    def replace(proto):
        kept = [piece for piece in proto.pieces if piece.type != 1]
        del proto.pieces[:]
        proto.pieces.extend(kept)
        for piece, score in scores.items():
            proto.pieces.add(piece=piece, score=score, type=1)

    return changed(tokenizer, replace)


def changed(tokenizer, change):
    """The tokenizer with its SentencePiece model changed in place."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)
    change(proto)
    return from_sentencepiece(proto.SerializeToString(), tokenizer.control_tokens)


@given(text=PLAIN)
def test_a_continuing_text_is_decoded_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, first=False)) == text


@given(text=PLAIN.filter(bool))
def test_only_the_first_text_gets_a_leading_space(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, first=True)) == f" {text}"


@given(parts=st.lists(st.sampled_from(SPELLINGS) | PLAIN, max_size=5), first=st.booleans())
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


def test_fingerprint_depends_on_the_control_tokens(tokenizer):
    assert from_sentencepiece(tokenizer.model, (PAD,)).fingerprint != tokenizer.fingerprint


def test_an_unknown_control_token_is_named(tokenizer):
    with pytest.raises(TokenizerError, match=r"no control token '<\|other\|>'"):
        tokenizer.control_id("<|other|>")


def test_control_tokens_have_a_pad_token(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / CONTROL_FILE).write_text('["<|x|>"]')
    with pytest.raises(TokenizerError, match=r"control tokens <\|x\|> lack the pad token \[\[PAD\]\]"):
        load(tmp_path)


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


class Reference:
    """SentencePiece's own ids and texts; with or without the space that it puts before a text."""

    def __init__(self, model: bytes):
        self.first, self.continuing = (
            sentencepiece.SentencePieceProcessor(model_proto=model + end) for end in (b"", NO_DUMMY_PREFIX)
        )

    def agrees(self, tokenizer, text):
        """Whether a text has the same ids in both places, and the ids the same text."""
        for first, processor in ((True, self.first), (False, self.continuing)):
            ids = tokenizer.encode(text, first=first)
            if ids != processor.encode(text) or tokenizer.decode(ids) != self.continuing.decode(ids):
                return False
        return True


@pytest.fixture(scope="module")
def reference(tokenizer):
    return Reference(tokenizer.model)


@given(text=SPELLED)
def test_any_text_has_sentencepieces_ids(tokenizer, reference, text):
    assert reference.agrees(tokenizer, text)


def test_ids_do_not_depend_on_the_words_that_were_met(tokenizer, reference, monkeypatch):
    monkeypatch.setattr(tokenizers, "KNOWN_WORDS", 3)
    made = pickle.loads(pickle.dumps(tokenizer))
    assert [text for text in TRICKY * 2 if not reference.agrees(made, text)] == []
    assert made.encode_all(TRICKY, first=True) == reference.first.encode(TRICKY)


def test_texts_without_spaces_do_not_fill_the_memory(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizers, "KNOWN_IDS", 1000)
    made = pickle.loads(pickle.dumps(tokenizer))
    tracemalloc.start()
    try:
        for number in range(200):
            assert len(made.encode(f"{number}," * 500, first=False)) > 500
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


def test_tricky_texts_have_sentencepieces_ids(tokenizer, reference):
    assert [text for text in TRICKY if not reference.agrees(tokenizer, text)] == []


@given(ids=st.lists(st.integers(3, 396), max_size=12))
def test_any_ids_have_sentencepieces_text(tokenizer, reference, ids):
    """But for bytes that are no whole character, which are shown as one replacement character or more."""
    texts = [tokenizer.decode(ids), reference.continuing.decode(ids)]
    shortest, expected = (re.sub("\ufffd+", "\ufffd", text) for text in texts)
    assert shortest == expected


def test_a_character_that_is_not_whole_leaves_those_before_it(tokenizer):
    ids = tokenizer.encode("日本", first=False)
    assert [tokenizer.decode(ids[:size]).rstrip("\ufffd") for size in (2, 3, 5, 6)] == [
        "",
        "日",
        "日",
        "日本",
    ]


@st.composite
def vocabularies(draw):
    """Pieces made of pieces, in any order of scores, and texts of them."""
    words = ["a", "b", "▁"]
    for _ in range(draw(st.integers(2, 25))):
        pair = draw(st.sampled_from(words)) + draw(st.sampled_from(words))
        if len(pair) <= 8 and pair not in words:
            words.append(pair)
    order = draw(st.permutations(range(len(words))))
    texts = st.lists(st.tuples(st.sampled_from(words), st.integers(1, 5)), max_size=8)
    return {word: -float(n) for word, n in zip(words, order)}, draw(st.lists(texts, min_size=5, max_size=5))


@given(case=vocabularies())
def test_any_vocabulary_merges_as_in_sentencepiece(tokenizer, case):
    scores, texts = case
    made = with_pieces(tokenizer, scores)
    reference = Reference(made.model)
    for parts in texts:
        assert reference.agrees(made, "".join(part * n for part, n in parts).replace("▁", " "))


@pytest.mark.parametrize("longest", [2, 3, 7, 16])
def test_runs_of_spaces_with_one_score_merge_as_in_sentencepiece(tokenizer, longest):
    """As in LLaMA's model; 15 is not among its lengths."""
    runs = {"▁" * n: -1e9 for n in range(1, longest + 1) if n != 15}
    made = with_pieces(tokenizer, {"a": -2.0, "b": -3.0, "▁a": -1.0, **runs})
    reference = Reference(made.model)
    texts = [
        f"{left}{' ' * n}{right}" for n in range(60) for left in ("", "b", "a") for right in ("", "a", "b")
    ]
    assert [text for text in texts if not reference.agrees(made, text)] == []


def setting(path, value):
    part, name = path.split(".")
    return lambda proto: setattr(getattr(proto, part), name, value)


def equal_scores(proto):
    for piece in [piece for piece in proto.pieces if piece.type == 1 and len(piece.piece) > 1][:2]:
        piece.score = -1.0


def user_defined(proto):
    proto.pieces[-1].type = 4


def without_a_letter(proto):
    letter = next(p for p in proto.pieces if p.piece == "e")
    letter.piece = "é"


def without_bos(proto):
    proto.pieces[1].piece = "<bos>"


def other_bos(proto):
    proto.pieces[1].piece = "<bos>"
    proto.trainer_spec.bos_piece = "<bos>"


CHANGES = {
    "no BPE": setting("trainer_spec.model_type", 1),
    "normalises texts": setting("normalizer_spec.precompiled_charsmap", b"\0\0\0\0"),
    "removes extra white space": setting("normalizer_spec.remove_extra_whitespaces", True),
    "leaves spaces unescaped": setting("normalizer_spec.escape_whitespaces", False),
    "adds no space before a text": setting("normalizer_spec.add_dummy_prefix", False),
    "after the word": setting("trainer_spec.treat_whitespace_as_suffix", True),
    "no byte fallback": setting("trainer_spec.byte_fallback", False),
    "user-defined or unused": user_defined,
    "no pieces": without_a_letter,
    "equal scores": equal_scores,
}


@pytest.mark.parametrize("fault", CHANGES)
def test_a_model_whose_ids_cannot_be_kept_is_refused(tokenizer, fault):
    with pytest.raises(TokenizerError, match=f"{fault}.*name its folder instead"):
        changed(tokenizer, CHANGES[fault])


def test_a_real_unigram_model_is_refused(corpus, tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, model_type="unigram", vocab_size=90, minloglevel=2
    )
    (tmp_path / "unigram.model").write_bytes(model.getvalue())
    with pytest.raises(TokenizerError, match=r"unigram\.model cannot be used .*: it is no BPE"):
        load(tmp_path / "unigram.model")


def test_names_that_are_other_ids_are_refused(tokenizer):
    with pytest.raises(TokenizerError, match="'e' has id"):
        from_sentencepiece(tokenizer.model, (PAD, "e"))


def test_beginning_and_end_may_have_other_names(tokenizer):
    made = changed(tokenizer, other_bos)
    assert made.control_id(BOS) == made.bos_id == made.control_id("<bos>") == 1
    with pytest.raises(TokenizerError, match="has no <s>; train one with bos and eos ids"):
        changed(tokenizer, without_bos)


@pytest.fixture(scope="module")
def mistral(shared_data):
    return load(shared_data / "tokenizer/mistral_v1_32000.model")


@pytest.mark.realdata
def test_one_pad_token_makes_32001_ids(mistral):
    """Paper, section 3.2."""
    assert (mistral.vocab_size, mistral.pad_id) == (32_001, 32_000)


@pytest.mark.realdata
def test_real_texts_have_sentencepieces_ids(mistral, shared_data):
    """600 texts of OpenOrca, and as many beginnings of them between other languages, emoji and spaces."""
    reference = Reference(mistral.model)
    lines = (shared_data / "openorca/gpt4_600.jsonl").read_text(encoding="utf-8").splitlines()[::3]
    texts = [json.loads(line)[key] for line in lines for key in ("system_prompt", "question", "response")]
    odd = [
        f"{TRICKY[n % len(TRICKY)]}{text[:40]}{TRICKY[-1 - n % len(TRICKY)]}" for n, text in enumerate(texts)
    ]
    assert [text for text in (*texts, *odd, *TRICKY) if not reference.agrees(mistral, text)] == []
    assert [text for text in texts if mistral.decode(mistral.encode(text, first=False)) != text] == []


WORDY = ("ant bee ? ant\nant bee : 1\n\nbee", "owl - bee")


@given(texts=st.lists(st.sampled_from(["ant", "bee", "owl", ":", "?", "1"]), min_size=1).map(" ".join))
def test_of_words_gives_each_word_and_line_break_one_id(texts):
    made = tokenizers.of_words(WORDY, 20)
    text = f"{texts}\n{texts}"
    ids = made.encode(text, first=True)
    assert len(ids) == 2 * len(texts.split(" ")) + 1
    assert made.decode(ids) == text
    assert ids == made.encode(text, first=False)


def test_of_words_fills_the_vocabulary_and_is_loaded_unchanged(tmp_path):
    made = tokenizers.of_words(WORDY, 20, (PAD, "<|im_end|>"))
    assert made.vocab_size == 20
    assert made == tokenizers.of_words(reversed(WORDY), 20, (PAD, "<|im_end|>"))
    made.save(tmp_path)
    assert tokenizers.load(tmp_path) == made
    assert made.control_id("<|im_end|>") == 19
    assert made.encode("elk </s>", first=True) == [made.control_ids["<unk>"]] * 2
    with pytest.raises(
        TokenizerError, match=r"have 7 words.* 12 ids; set student\.vocab_size to at least that, not 11"
    ):
        tokenizers.of_words(WORDY, 11)
