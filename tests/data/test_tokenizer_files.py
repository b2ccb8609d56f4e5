"""Hugging Face tokenizers: the ids of the library, and no text spells a special token."""

import itertools
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.data import layouts, tokenizer_export, tokenizer_files
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.layouts import LAYOUTS, LayoutError, encode
from orca_jax.data.tokenizer import BOS, EOS, PAD, TokenizerError
from orca_jax.records import Message
from tests.data import hf_folders

SPELLINGS = ["</s>", "<s>", "[[PAD]]", "<|im_start|>", "<|strip|>", "[INST]", " <|im_end|> ", "<0x0A>", "▁"]
TEXT = st.text(st.characters(codec="utf-8"), max_size=25)
SPELLED = st.lists(st.sampled_from(SPELLINGS) | TEXT, max_size=5).map("".join)
LOSSLESS = ["byte_level", "prepend", "metaspace_first", "metaspace_always"]
EVERY_KIND = pytest.mark.parametrize("kind", hf_folders.KINDS)
TRICKY = [
    "",
    " ",
    "   ",
    " a",
    "a  b   c ",
    "\n\n x\t",
    "naïve 日本語 한국어 العربية",
    "👩‍👩‍👧 👍🏽",
    *SPELLINGS,
]


@pytest.fixture(scope="module")
def folders(corpus, tmp_path_factory):
    """A folder of each kind of tokenizer."""
    root = tmp_path_factory.mktemp("kinds")
    return {
        kind: hf_folders.write_folder(root / kind, make(corpus), hf_folders.CHATML)
        for kind, make in hf_folders.KINDS.items()
    }


@pytest.fixture(scope="module")
def loaded(folders):
    return {kind: tokenizers.load(folder) for kind, folder in folders.items()}


@EVERY_KIND
@given(text=SPELLED, first=st.booleans())
def test_no_text_spells_a_special_token(kind, loaded, text, first):
    tokenizer = loaded[kind]
    special = {i for name, i in tokenizer.control_ids.items() if name != "<unk>"}
    assert not special & set(tokenizer.encode(text, first=first))


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=SPELLED.map(lambda text: text.replace("▁", "")))
def test_a_continuing_text_is_decoded_as_it_was(kind, loaded, text):
    tokenizer = loaded[kind]
    assert tokenizer.decode(tokenizer.encode(text, first=False)) == text


@pytest.mark.parametrize("kind", ["prepend", "metaspace_first", "metaspace_always", "unigram"])
def test_only_the_first_text_gets_a_leading_space(kind, loaded):
    tokenizer = loaded[kind]
    assert tokenizer.decode(tokenizer.encode("the cat", first=True)) == " the cat"
    assert tokenizer.decode(tokenizer.encode("the cat", first=False)) == "the cat"


def test_a_byte_level_tokenizer_has_no_leading_space(loaded):
    tokenizer = loaded["byte_level"]
    assert tokenizer.encode("the cat", first=True) == tokenizer.encode("the cat", first=False)


@EVERY_KIND
def test_a_pad_token_is_appended_where_the_folder_names_none(kind, loaded):
    tokenizer = loaded[kind]
    assert tokenizer.pad_id == tokenizer.control_id(PAD) == tokenizer.vocab_size - 1
    assert tokenizer.token_text(tokenizer.pad_id) == PAD


def test_the_folders_own_pad_token_is_kept(corpus, tmp_path):
    folder = hf_folders.write_folder(tmp_path, hf_folders.byte_level(corpus), pad="<|endoftext|>")
    tokenizer = tokenizers.load(folder, ("[[PAD]]",))
    assert tokenizer.pad_id == tokenizer.control_id("<|endoftext|>")
    assert PAD not in tokenizer.control_ids
    assert dict(tokenizer.files)["tokenizer.json"] == (folder / "tokenizer.json").read_text(encoding="utf-8")


def test_control_tokens_that_a_layout_wants_are_appended(corpus, tmp_path):
    folder = hf_folders.write_folder(tmp_path, hf_folders.byte_level(corpus))
    before = tokenizers.load(folder)
    tokenizer = tokenizers.load(folder, (PAD, "<|im_start|>", "<|new|>"))
    assert tokenizer.vocab_size == before.vocab_size + 1
    assert tokenizer.control_id("<|im_start|>") == before.control_id("<|im_start|>")
    assert tokenizer.encode("<|new|>", first=True) == before.encode("<|new|>", first=True)


def test_tokens_that_the_config_lists_are_special_too(corpus, tmp_path):
    made = hf_folders.byte_level(corpus)
    made.add_tokens(["<|tool|>", "<|plain|>"])
    folder = hf_folders.write_folder(tmp_path, made, additional_special_tokens=["<|tool|>"])
    tokenizer = tokenizers.load(folder)
    assert tokenizer.control_id("<|tool|>") not in tokenizer.encode("a <|tool|>", first=True)
    assert "<|plain|>" not in tokenizer.control_ids
    assert len(tokenizer.encode("<|plain|>", first=True)) == 1


def test_beginning_and_end_go_by_our_names_too(corpus, tmp_path):
    made = hf_folders.byte_level(corpus)
    tokenizer = tokenizers.load(hf_folders.write_folder(tmp_path / "a", made, bos="<|begin|>", eos="<|end|>"))
    assert tokenizer.control_id(BOS) == tokenizer.control_id("<|begin|>")
    assert tokenizer.control_id(EOS) == tokenizer.control_id("<|end|>")
    assert tokenizer.eos_ids == (tokenizer.control_id("<|end|>"),)
    made.add_special_tokens([BOS])
    tokenizer = tokenizers.load(hf_folders.write_folder(tmp_path / "b", made, bos="<|begin|>", eos="<|end|>"))
    assert tokenizer.control_id(BOS) == tokenizer.control_ids["<|begin|>"] != tokenizer.control_ids[BOS]


def test_a_tokenizer_may_have_no_beginning_of_sequence(corpus, tmp_path):
    made = hf_folders.byte_level(corpus)
    tokenizer = tokenizers.load(hf_folders.write_folder(tmp_path, made, bos=None, eos="<|im_end|>"))
    assert BOS not in tokenizer.control_ids
    assert "bos_token" not in tokenizer.special_names
    with pytest.raises(TokenizerError, match="no control token '<s>', only"):
        tokenizer.control_id(BOS)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_several_ends_of_sequence_are_read(corpus, tmp_path, file):
    folder = hf_folders.write_folder(tmp_path / "a", hf_folders.byte_level(corpus))
    turn = tokenizers.load(folder).control_id("<|turn|>")
    (folder / file).write_text(json.dumps({"eos_token_id": [turn, 7], "vocab_size": 9}))
    tokenizer = tokenizers.load(folder)
    assert tokenizer.eos_ids == (tokenizer.control_id(EOS), turn, 7)
    tokenizer.save(tmp_path / "b")
    assert tokenizers.load(tmp_path / "b") == tokenizer


@EVERY_KIND
def test_a_saved_tokenizer_is_loaded_unchanged(kind, loaded, tmp_path):
    for name in ("a", "b"):
        loaded[kind].save(tmp_path / name)
    again = tokenizers.load(tmp_path / "a")
    assert again == loaded[kind]
    assert again.fingerprint == loaded[kind].fingerprint
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    again.save(tmp_path / "c")
    assert tokenizers.load(tmp_path / "c") == again


def test_a_tokenizer_can_be_sent_to_another_process(loaded):
    """As a worker of `prepare` gets it, in use already: there too a text spells no special token."""
    tokenizer = loaded["byte_level"]
    expected = tokenizer.encode("the cat </s>", first=True)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer
    assert again.encode("the cat </s>", first=True) == expected


def test_fingerprints_differ(loaded):
    assert len({tokenizer.fingerprint for tokenizer in loaded.values()}) == len(loaded)


def test_our_own_folders_keep_precedence(tokenizer, loaded, tmp_path):
    loaded["byte_level"].save(tmp_path)
    tokenizer.save(tmp_path)
    assert tokenizers.load(tmp_path) == tokenizer


def test_byte_pieces_are_shown_as_text(loaded):
    tokenizer = loaded["byte_level"]
    shown = [tokenizer.token_text(i) for i in tokenizer.encode("the cat\n", first=True)]
    assert "".join(shown) == "the▁cat<0x0A>"
    assert tokenizer.token_text(tokenizer.encode("é", first=True)[0]) != "�"
    assert tokenizer.token_text(10**6) == "<unused 1000000>"


def test_a_model_that_makes_special_tokens_of_text_is_found_out(loaded, tmp_path):
    data = json.loads(dict(loaded["byte_level"].files)["tokenizer.json"])
    piece = next(piece for piece, i in data["model"]["vocab"].items() if piece == "Ġthe")
    data["added_tokens"].insert(
        0, {**data["added_tokens"][0], "content": piece, "id": data["model"]["vocab"][piece]}
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(TokenizerError, match="makes special token 'Ġthe' of the text"):
        tokenizers.load(tmp_path).encode("in the house", first=True)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": 1, "added_tokens": []}'])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerError, match=f"{tmp_path.name} cannot be used as a tokenizer"):
        tokenizers.load(tmp_path)


def test_its_own_files_are_exported(loaded, tmp_path):
    tokenizer = loaded["prepend"]
    tokenizer_export.write(tokenizer, "template", tmp_path, model_max_length=64)
    again = tokenizers.load(tmp_path)
    assert dict(again.files)["tokenizer.json"] == dict(tokenizer.files)["tokenizer.json"]
    assert again.chat_template == tokenizer.chat_template
    assert again.special_names == tokenizer.special_names
    with pytest.raises(LayoutError, match="gives the ids of layout 'orca'"):
        tokenizer_export.write(loaded["prepend"], "orca", tmp_path, model_max_length=64)


@pytest.fixture(scope="module")
def automatic(folders):
    transformers = pytest.importorskip("transformers")
    return {kind: transformers.AutoTokenizer.from_pretrained(folder) for kind, folder in folders.items()}


def plain_ids(automatic, text):
    return automatic(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parity
@EVERY_KIND
def test_ids_are_those_of_transformers(kind, loaded, automatic):
    differing = {"</s>", "<s>"} if kind == "unigram" else set()  # transformers makes special tokens of these
    for text in TRICKY:
        if text not in differing:
            assert loaded[kind].encode(text, first=True) == plain_ids(automatic[kind], text), text


@pytest.mark.parity
@EVERY_KIND
def test_exported_files_say_the_same_to_transformers(kind, corpus, tmp_path):
    """Whatever class the folder names, and after special tokens too."""
    transformers = pytest.importorskip("transformers")
    made, template = hf_folders.KINDS[kind](corpus), hf_folders.TEMPLATES["lines"]
    hf_folders.write_folder(tmp_path / "a", made, template, tokenizer_class="LlamaTokenizer", legacy=True)
    tokenizer = tokenizers.load(tmp_path / "a")
    tokenizer_export.write(tokenizer, "template", tmp_path / "b", model_max_length=64)
    (tmp_path / "b/config.json").write_text(json.dumps({"model_type": "llama"}))
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    turns = [Message("user", "the cat  sees"), Message("assistant", " it is red."), Message("user", "42")]
    expected = exported.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in turns],
        return_dict=False,
        add_generation_prompt=True,
    )
    assert encode(turns, "template", tokenizer).tokens.tolist() == expected
    assert exported.model_max_length == 64


@pytest.mark.parity
@pytest.mark.realdata
@pytest.mark.parametrize("kind", ["byte_level", "prepend", "metaspace_first"])
def test_openorca_has_the_ids_of_transformers(kind, loaded, automatic, shared_data):
    lines = (shared_data / "openorca/gpt4_600.jsonl").read_text(encoding="utf-8").splitlines()[::6]
    texts = [json.loads(line)[key] for line in lines for key in ("system_prompt", "question", "response")]
    assert [t for t in texts if loaded[kind].encode(t, first=True) != plain_ids(automatic[kind], t)] == []


@EVERY_KIND
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_other_layouts_take_it_too(kind, layout, loaded):
    tokenizer = loaded[kind]
    turns = [Message("user", "the cat sees"), Message("assistant", "it is red"), Message("user", "the dog")]
    encoded, prompt = (encode(spoken, layout, tokenizer).tokens.tolist() for spoken in (turns, turns[:1]))
    assert encoded[: len(prompt)] == prompt
    answer = tokenizer.decode(encoded[len(prompt) :])
    before, _ = layouts.answer_frame(layout, tokenizer)
    assert answer.removeprefix(before).startswith("it is red")


TURNS = [
    Message("system", "Be kind."),
    *[Message(role, said) for said in ("Is it red?", "No") for role in ("user", "assistant")],
]


@pytest.mark.parametrize("layout", layouts.CONTROL_TOKENS)
@pytest.mark.parametrize("name", hf_folders.RELEASED)
def test_a_sequence_begins_once_or_has_no_beginning(name, layout, corpus, tmp_path):
    """Without a beginning of sequence none is written; one that the layout writes anyway is not doubled."""
    folder = hf_folders.released(tmp_path, corpus, name)
    tokenizer = tokenizers.load(folder, layouts.CONTROL_TOKENS[layout])
    assert layouts.default(folder) == ("" if name == "gpt2" else "template")
    refused = {("smollm2", "chatml"): "twice; use 'template'", ("gpt2", "template"): "tokenizer has none"}
    if message := refused.get((name, layout)):
        for use in (lambda: encode(TURNS, layout, tokenizer), lambda: layouts.stop_ids(layout, tokenizer)):
            with pytest.raises(LayoutError, match=message):
                use()
        return
    ids, prompt = (encode(TURNS[:end], layout, tokenizer).tokens.tolist() for end in (5, 2))
    assert ids[: len(prompt)] == prompt
    assert tokenizer.bos_id not in [a for a, b in itertools.pairwise(ids) if a == b]
    assert (tokenizer.bos_id == ids[0]) is (tokenizer.bos_id is not None)
    assert (tokenizer.bos_id is None) is (name == "qwen")


def test_a_folder_without_a_default_among_its_templates_is_refused(corpus, tmp_path):
    templates = [{"name": "rag", "template": "x"}]
    folder = hf_folders.write_folder(tmp_path, hf_folders.byte_level(corpus), templates)
    with pytest.raises(TokenizerError, match="rag, but none named default"):
        assert tokenizers.load(folder).chat_template


def test_the_template_is_found_wherever_it_is(corpus, tmp_path):
    made = hf_folders.byte_level(corpus)
    named = [{"name": "rag", "template": "x"}, {"name": "default", "template": "y"}]
    assert tokenizers.load(hf_folders.write_folder(tmp_path, made)).chat_template is None
    assert tokenizers.load(hf_folders.write_folder(tmp_path, made, named)).chat_template == "y"
    assert tokenizers.load(hf_folders.write_folder(tmp_path, made, "z")).chat_template == "z"
    (tmp_path / tokenizer_files.TEMPLATE_FILE).write_text("own file")
    assert tokenizers.load(tmp_path).chat_template == "own file"
