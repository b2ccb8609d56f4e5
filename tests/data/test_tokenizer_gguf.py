"""A GGUF file's tokenizer gives the ids of the folder that it was made from."""

import importlib
import json

import pytest

pytest.importorskip("gguf")

import tokenizers as library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from orca_jax.data import layouts, tokenizer_export
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.tokenizer import TokenizerError
from orca_jax.data.tokenizer_files import merges_by_score
from orca_jax.data.tokenizer_gguf import DIGITS, PRE, files, metadata
from orca_jax.records import Message
from tests.data import hf_folders
from tests.data.test_tokenizer_files import TRICKY
from tests.student import gguf_files

TEXTS = [
    *TRICKY,
    "I'll pay 12345.67 for  three\r\n\r\n CATS, don't I'M?!",
    "a/b\n\n  é²½ ǅx e\u0301",
    "<tool>x</tool>",
]
MESSAGES = [Message("system", "Be kind."), Message("user", " Is it  red?"), Message("assistant", "Yes.")]
# As Llama 3, Qwen, SmolLM, GPT-2 and Mistral Nemo have it in their tokenizer.json.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NEMO = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"llama-bpe": LLAMA3, "dbrx": LLAMA3, "qwen2": LLAMA3.replace("{1,3}", ""), "tekken": NEMO}
BYTE_LEVEL = [*SPLITS, "smollm", "gpt-2"]


def byte_level(corpus, name):
    made = library.Tokenizer(models.BPE())
    if name in SPLITS:
        steps = [pre_tokenizers.Split(library.Regex(SPLITS[name]), "isolated")]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    else:
        steps = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm" else []
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if name == "qwen2":
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [*corpus, *["I'll DON'T 1234 é ./\n\n"] * 50]
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=450, initial_alphabet=alphabet))
    data = json.loads(made.to_str())
    data["model"]["ignore_merges"] = name in ("llama-bpe", "tekken")
    made = library.Tokenizer.from_str(json.dumps(data))
    made.add_tokens([library.AddedToken("<tool>", normalized=False)])
    return made


def folder_of(root, corpus, name, **settings):
    settings = {
        "template": hf_folders.CHATML,
        "bos": "<|begin|>",
        "eos": "<|im_end|>",
        "pad": "<|turn|>",
    } | settings
    return hf_folders.write_folder(root, byte_level(corpus, name), **settings)


def header_of(folder, name, rows=0):
    """What llama.cpp's converter writes of a byte-level tokenizer's folder."""
    data = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    ids = library.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    rows = rows or len(ids)
    tokens, kinds = [f"[PAD{i}]" for i in range(rows)], [5] * rows
    added = {token["id"]: 3 if token["special"] else 4 for token in data["added_tokens"]}
    for token, i in ids.items():
        tokens[i], kinds[i] = token, added.get(i, 1)
    own = {"model": "gpt2", "pre": name, "tokens": tokens, "token_type": kinds}
    own["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    own["add_bos_token"] = True
    for key, named in (("bos", "bos_token"), ("eos", "eos_token"), ("padding", "pad_token")):
        if config.get(named):
            text = config[named]["content"] if isinstance(config[named], dict) else config[named]
            own[f"{key}_token_id"] = ids[text]
    found = {f"tokenizer.ggml.{key}": value for key, value in own.items()}
    return {**found, "tokenizer.chat_template": config["chat_template"]}


def sentencepiece_header(tokenizer, **changed):
    """What llama.cpp's converter writes of a SentencePiece model and of tokens added to it."""
    messages = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    pieces = messages.ModelProto.FromString(tokenizer.model).pieces
    added = tokenizer.control_tokens
    own = {
        "model": "llama",
        "pre": "default",
        "tokens": [*(one.piece for one in pieces), *added],
        "scores": [*(one.score for one in pieces), *(-1000.0 for _ in added)],
        "token_type": [*(one.type for one in pieces), *(3 for _ in added)],
        **{"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0},
        "padding_token_id": tokenizer.pad_id,
        **changed,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in own.items()}


def written(tmp_path, header):
    return gguf_files.write(tmp_path / "m.gguf", "llama", {}, header)


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_byte_level_tokenizer_has_the_ids_of_its_folder(name, corpus, tmp_path):
    folder = folder_of(tmp_path / "folder", corpus, name)
    path = written(tmp_path, header_of(folder, name, rows=520))
    theirs, ours = tokenizers.load(folder), tokenizers.load(path)
    for text in TEXTS:
        assert ours.encode(text, first=True) == theirs.encode(text, first=True), text
    assert (ours.vocab_size, ours.control_ids) == (theirs.vocab_size, theirs.control_ids)
    assert (ours.bos_id, ours.pad_id, ours.eos_ids) == (theirs.bos_id, theirs.pad_id, theirs.eos_ids)
    assert layouts.default(path) == "template"
    encoded = [layouts.encode(MESSAGES, "template", one).tokens.tolist() for one in (ours, theirs)]
    assert encoded[0] == encoded[1]
    ours.save(tmp_path / "saved")
    assert tokenizers.load(tmp_path / "saved").encode(TEXTS[-3], first=True) == theirs.encode(
        TEXTS[-3], first=True
    )


def test_the_ways_of_splitting_differ_on_these_texts(corpus, tmp_path):
    """So that the test above would fail if two names were confused."""
    made = {name: byte_level(corpus, name).pre_tokenizer for name in BYTE_LEVEL if name != "dbrx"}
    found = [str([made[name].pre_tokenize_str(text) for text in TEXTS]) for name in made]
    assert len({*found}) == len(found)
    assert DIGITS in PRE["starcoder"].steps


def test_a_sentencepiece_tokenizer_has_the_ids_of_its_model(tokenizer, tmp_path):
    ours = tokenizers.load(written(tmp_path, sentencepiece_header(tokenizer)))
    for text in TEXTS:
        assert ours.encode(text, first=True) == tokenizer.encode(text, first=True), text
        assert ours.encode(text, first=False) == tokenizer.encode(text, first=False), text
    assert ours.vocab_size == tokenizer.vocab_size
    assert (ours.bos_id, ours.pad_id, ours.eos_ids) == (1, tokenizer.pad_id, (2,))
    assert ours.control_id("<|im_end|>") == tokenizer.control_id("<|im_end|>")
    assert ours.leads_sections  # as llama.cpp puts a space after special tokens too
    bare = tokenizers.load(written(tmp_path, sentencepiece_header(tokenizer, add_space_prefix=False)))
    assert bare.encode(" the cat", first=True) == tokenizer.encode("the cat", first=True)
    assert bare.decode(bare.encode("the cat", first=True)) == "the cat"
    assert not bare.leads_sections


def test_a_beginning_is_named_where_texts_have_one(corpus, tmp_path):
    """As Qwen's files name one that no text begins with."""
    folder = folder_of(tmp_path / "folder", corpus, "qwen2")
    header = header_of(folder, "qwen2") | {"tokenizer.ggml.add_bos_token": False}
    assert tokenizers.load(written(tmp_path, header)).bos_id is None
    del header["tokenizer.ggml.add_bos_token"]
    assert tokenizers.load(written(tmp_path, header)).bos_id is None
    header["tokenizer.chat_template"] = hf_folders.PLAIN
    assert tokenizers.load(written(tmp_path, header)).bos_id == tokenizers.load(folder).bos_id


def test_a_whole_tokenizer_json_is_preferred(tokenizer, corpus, tmp_path):
    folder = folder_of(tmp_path / "folder", corpus, "gpt-2")
    header = header_of(folder, "an unknown one")
    header["tokenizer.huggingface.json"] = (folder / "tokenizer.json").read_text()
    assert tokenizers.load(written(tmp_path, header)).encode("the cat", first=True) == tokenizers.load(
        folder
    ).encode("the cat", first=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pre": "deepseek-v3"},
            "pre is 'deepseek-v3', and how it splits texts is not known here; known: llama-bpe",
        ),
        ({"pre": "default"}, "pre is 'default', and how"),
        ({"model": "t5"}, "model is 't5'; known: gpt2, llama"),
        ({"merges": ["a nothing"]}, "metadata tokenizer.ggml.* is damaged"),
        ({"eos_token_id": 9999}, "metadata tokenizer.ggml.* is damaged"),
        ({"token_type": [1, 1]}, "metadata tokenizer.ggml.* is damaged"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change, message, corpus, tmp_path):
    header = header_of(folder_of(tmp_path / "folder", corpus, "gpt-2"), "gpt-2")
    header |= {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(TokenizerError, match=message.replace("*", r"\*")):
        files(header)
    with pytest.raises(TokenizerError, match=r"m\.gguf cannot be used as a tokenizer"):
        tokenizers.load(written(tmp_path, header))


def test_a_file_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="model is None; known: gpt2, llama"):
        tokenizers.load(written(tmp_path, {"general.name": "none"}))
    assert layouts.default(tmp_path / "none") == ""


# Out


def written_out(folder, rows=520):
    """A folder's tokenizer as metadata and back, by llama.cpp's part of it."""
    made = {path.name: path.read_text() for path in folder.iterdir()}
    return metadata(made, rows)


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_byte_level_tokenizer_goes_out_as_the_converter_writes_it(name, corpus, tmp_path):
    folder = folder_of(tmp_path / "folder", corpus, name)
    header, expected = written_out(folder), header_of(folder, name, rows=520)
    assert header.pop("tokenizer.huggingface.json") == (folder / "tokenizer.json").read_text()
    assert header | {"tokenizer.ggml.add_bos_token": True} == expected
    assert header["tokenizer.ggml.add_bos_token"] is False  # no step of the tokenizer.json puts it there


def test_the_template_is_found_wherever_it_is(corpus, tmp_path):
    folder = hf_folders.without_template(folder_of(tmp_path / "folder", corpus, "gpt-2"))
    assert "tokenizer.chat_template" not in written_out(folder)
    (folder / "chat_template.jinja").write_text(hf_folders.CHATML)
    assert written_out(folder)["tokenizer.chat_template"] == hf_folders.CHATML


def test_a_beginning_is_asked_for_where_the_tokenizer_puts_one(corpus, tmp_path):
    made = hf_folders.begins(byte_level(corpus, "llama-bpe"), "<|begin|>")
    folder = hf_folders.write_folder(tmp_path / "folder", made, bos="<|begin|>")
    assert written_out(folder)["tokenizer.ggml.add_bos_token"] is True


def merge_all(folder):
    """Lists every pair that makes a piece, as conversions of SentencePiece's models do."""
    data = json.loads((folder / "tokenizer.json").read_text())
    ranks = {"".join(pair): -rank for rank, pair in enumerate(data["model"]["merges"])}
    single = {piece: -1e4 for piece in data["model"]["vocab"] if len(piece) == 1}
    data["model"]["merges"] = merges_by_score(single | ranks)
    (folder / "tokenizer.json").write_text(json.dumps(data))


@pytest.mark.parametrize("kind", ["prepend", "metaspace_first", "metaspace_always", "ours"])
def test_a_sentencepiece_like_tokenizer_goes_out_with_scores(kind, corpus, tokenizer, tmp_path):
    """llama.cpp's part alone, which knows no other spaces than before all texts, or before none."""
    folder = tmp_path / "folder"
    if kind == "ours":
        tokenizer_export.write(tokenizer, "orca", folder, model_max_length=64)
    else:
        hf_folders.write_folder(folder, hf_folders.KINDS[kind](corpus))
        merge_all(folder)
    header, theirs = written_out(folder), tokenizers.load(folder)
    whole = tokenizers.load(written(tmp_path, header))
    del header["tokenizer.huggingface.json"]
    part = tokenizers.load(written(tmp_path, header))
    always = kind in ("prepend", "metaspace_always")
    assert header["tokenizer.ggml.add_space_prefix"] is always
    for text in TEXTS[:-1]:  # the last has a token that only the byte-level ones have
        for first in (True, False):
            assert whole.encode(text, first=first) == theirs.encode(text, first=first), text
            if kind == "metaspace_always" and text.startswith((" ", "▁")):
                continue  # where the library's step puts no space
            assert part.encode(text, first=first and always) == theirs.encode(text, first=first and always), (
                text
            )
    assert (part.bos_id, part.eos_ids) == (theirs.bos_id, theirs.eos_ids)


def test_what_llama_cpp_does_not_know_is_refused(corpus, tmp_path):
    for kind, message in (
        ("unigram", "knows no Unigram tokenizer like this"),
        ("metaspace_first", "merges by scores, and no scores give this tokenizer's merges"),
        ("byte_level", "no name for how this tokenizer splits texts: Pre"),
    ):
        folder = hf_folders.write_folder(tmp_path / kind, hf_folders.KINDS[kind](corpus))
        with pytest.raises(TokenizerError, match=message):
            written_out(folder)
