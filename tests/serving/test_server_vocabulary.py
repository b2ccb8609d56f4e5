"""Ids and texts: names of control tokens, a name for every id, and how much text each id adds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.data import layouts, tokenizer_export
from orca_jax.data.chat_template import text_of
from orca_jax.data.tokenizer import load
from orca_jax.records import Message
from orca_jax.serving.vocabulary import Vocabulary

PARTS = st.lists(
    st.one_of(st.text("ab \nché日😀", max_size=6), st.sampled_from(["<s>", "</s>", "<|im_end|>", "[[PAD]]"])),
    max_size=6,
)


@pytest.fixture(scope="module", params=["ours", "Hugging Face"])
def vocabulary(request, tokenizer, tmp_path_factory):
    if request.param == "ours":
        return Vocabulary(tokenizer, "chatml")
    folder = tmp_path_factory.mktemp("folder")
    tokenizer_export.write(tokenizer, "chatml", folder, model_max_length=128)
    return Vocabulary(load(folder), "chatml")


@given(parts=PARTS)
def test_ids_and_back(vocabulary, parts):
    ids = vocabulary.tokenize("".join(parts))
    text = vocabulary.detokenize(ids)
    assert vocabulary.tokenize(text) == ids


@given(text=st.text(max_size=20))
def test_plain_text_spells_no_control_token(vocabulary, text):
    assert not set(vocabulary.plain(text + "</s>")) & set(vocabulary.tokenizer.control_ids.values())


@pytest.mark.parametrize("name", ["<s>", "</s>", "<|im_start|>", "[[PAD]]"])
def test_a_control_tokens_name_is_its_id(vocabulary, name):
    token = vocabulary.tokenizer.control_id(name)
    assert vocabulary.tokenize(name) == [token]
    assert vocabulary.name(token) == name


def test_a_conversation_by_template_and_tokenize_is_the_layouts(vocabulary):
    messages = [Message("system", "Be  kind."), Message("user", "日 </x>")]
    contents = [(message.role, message.content) for message in messages]
    text = text_of(vocabulary.chat_template, contents, vocabulary.special_names, True)
    expected = layouts.encode(messages, "chatml", vocabulary.tokenizer).tokens.tolist()
    assert vocabulary.tokenize(text) == expected


def test_the_beginning_of_sequence_is_put_where_it_is_missing(vocabulary):
    bos = vocabulary.tokenizer.control_id("<s>")
    assert vocabulary.begun([9, bos]) == ([bos, 9, bos], 1)
    assert vocabulary.begun([bos, 9]) == ([bos, 9], 0)
    assert vocabulary.begun([]) == ([bos], 1)


def test_every_id_has_a_name_and_bytes_have_their_number(vocabulary):
    size = vocabulary.tokenizer.vocab_size
    names = [vocabulary.name(token) for token in range(size + 3)]
    assert all(names)
    assert len(set(names)) == len(names)
    spelled = b"".join(bytes(vocabulary.bytes(token) or ()) for token in vocabulary.tokenize("é日"))
    assert spelled.decode().strip() == "é日"


@given(parts=PARTS)
def test_lengths_add_up_to_the_text(vocabulary, parts):
    ids = vocabulary.tokenize("".join(parts))
    lengths = vocabulary.lengths(ids)
    assert len(lengths) == len(ids)
    assert sum(lengths) == len(vocabulary.decode(ids))
