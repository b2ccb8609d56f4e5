"""Ids and texts for clients: raw prompts, and a name for every id."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from orca_jax.data import tokenizer as tokenizers
from orca_jax.data import tokenizer_export
from orca_jax.serving.completions import Service
from tests.serving.served import make_student

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.text("ab \nché日😀", max_size=20)


@pytest.fixture(scope="module", params=["ours", "Hugging Face"])
def service(request, tokenizer, tmp_path_factory):
    if request.param != "ours":
        folder = tmp_path_factory.mktemp("folder")
        tokenizer_export.write(tokenizer, "chatml", folder, model_max_length=128)
        tokenizer = tokenizers.load(folder)
    service = Service(make_student(tokenizer), "small", queue=1)
    yield service
    service.worker.close()


@given(text=TEXTS)
def test_a_prompts_text_spells_no_control_token(service, text):
    prompt = service._prompt(text + "</s>")
    tokenizer = service.student.tokenizer
    assert not set(prompt.ids[1:].tolist()) & set(tokenizer.control_ids.values())
    assert prompt.ids[0] == tokenizer.bos_id


def test_the_beginning_of_sequence_is_put_where_it_is_missing(service):
    bos = service.student.tokenizer.bos_id
    for given_ids, ids in (([9, bos], [bos, 9, bos]), ([bos, 9], [bos, 9])):
        prompt = service._prompt(given_ids)
        assert (prompt.ids.tolist(), prompt.tokens) == (ids, len(given_ids))


@pytest.mark.parametrize("name", ["<s>", "</s>", "<|im_start|>", "[[PAD]]"])
def test_a_control_token_is_called_by_its_name(service, name):
    assert service.token_name(service.student.tokenizer.control_id(name)) == name


def test_every_id_has_a_name_of_its_own(service):
    names = [service.token_name(token) for token in range(service.student.tokenizer.vocab_size + 3)]
    assert all(names)
    assert len(set(names)) == len(names)
