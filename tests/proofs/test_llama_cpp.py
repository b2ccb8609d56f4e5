"""llama.cpp, which nobody here wrote, reads our files: the same ids of texts, the same greedy replies.

It comes built in npm's `node-llama-cpp` (3.x with @node-llama-cpp/linux-x64; install scripts are not needed):

NODE_LLAMA_CPP=FOLDER_OF_NODE_MODULES python -m pytest --proof -s tests/proofs/test_llama_cpp.py
"""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")

from orca_jax.config import MeshConfig
from orca_jax.data import chat_template, layouts, tokenizer_export
from orca_jax.data import tokenizer as tokenizers
from orca_jax.experiments import convert
from orca_jax.records import Message
from orca_jax.student import gguf_export
from orca_jax.student.sharding import make_mesh
from orca_jax.training import students
from tests.data import hf_folders
from tests.data.test_tokenizer_gguf import BYTE_LEVEL, TEXTS, byte_level, merge_all
from tests.student.students import SMALL, logits, make_params
from tests.student.test_gguf import STUDENTS

LIBRARY = Path(os.environ.get("NODE_LLAMA_CPP", "node_modules")) / "node-llama-cpp/dist/index.js"
pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(not LIBRARY.exists(), reason="no node-llama-cpp; set NODE_LLAMA_CPP"),
]
# Keys and values are kept in float32, as here; its default is float16.
PROGRAM = """
const {library, file, texts, marked, prompts, count} = JSON.parse(process.argv[2]);
const {getLlama} = await import(library);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath: file});
const found = {texts: texts.map(text => model.tokenize(text, false)),
               marked: marked.map(text => model.tokenize(text, true)), replies: []};
if (prompts.length) {
  const context = await model.createContext({contextSize: 512, threads: 1, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"});
  const sequence = context.getSequence();
  for (const prompt of prompts) {
    const reply = [];
    await sequence.clearHistory();
    for await (const token of sequence.evaluate(prompt, {temperature: 0}))
      if (model.isEogToken(token) || reply.push(token) >= count) break;
    found.replies.push(reply);
  }
}
console.log(JSON.stringify(found));
process.exit(0);
"""
MESSAGES = [Message("system", "Be kind."), Message("user", " Is it  red?\n"), Message("assistant", "Yes.")]
MESSAGES += [Message("user", "Why?")]
QUESTIONS = [
    "Why is the sky blue?", "What is a ledger?", "Name three rivers.", "Is 17 a prime?", "Why do we sleep?",
    "How do bees find flowers?", "What is 12 times 12?", "Tell me of Ada Lovelace.", "Write a haiku on rain.",
    "Who are you?",
]  # fmt: skip


def ask(file, tmp_path, *, texts=(), marked=(), prompts=(), count=64):
    program = tmp_path / "ask.mjs"
    program.write_text(PROGRAM)
    asked = dict(library=str(LIBRARY.resolve()), file=str(file), texts=list(texts), marked=list(marked))
    asked |= dict(prompts=[[int(i) for i in prompt] for prompt in prompts], count=count)
    done = subprocess.run(["node", program, json.dumps(asked)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def greedy(params, config, prompt, reply):
    """Our likeliest id at each place of a reply that is theirs, and after it."""
    ids = np.asarray([*prompt, *reply], np.int32)
    size = -len(ids) % 64 + len(ids)
    return logits(params, ids, config, length=size).argmax(-1)[len(prompt) - 1 :].tolist()


@pytest.mark.parametrize("name", STUDENTS)
def test_greedy_ids_are_llama_cpps_in_every_family(name, corpus, tmp_path):
    folder = hf_folders.write_folder(tmp_path / "t", byte_level(corpus, "smollm"), eos="<|im_end|>")
    files = {file.name: file.read_text() for file in folder.iterdir()}
    config = dataclasses.replace(STUDENTS[name][1], vocab_size=500)
    params, prompts = make_params(config), ([5, 70, 300, 9, 11], [100])
    gguf_export.export(params, config, tmp_path / "m.gguf", tokenizer=files)
    for prompt, reply in zip(prompts, ask(tmp_path / "m.gguf", tmp_path, prompts=prompts)["replies"]):
        assert reply
        assert greedy(params, config, prompt, reply)[:-1] == reply


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, "prepend", "metaspace_first", "ours"])
def test_ids_of_texts_and_templates_are_llama_cpps(kind, corpus, tokenizer, tmp_path):
    folder = tmp_path / "tokenizer"
    if kind == "ours":
        tokenizer_export.write(tokenizer, "orca", folder, model_max_length=64)
    elif kind in BYTE_LEVEL:
        hf_folders.write_folder(folder, byte_level(corpus, kind), hf_folders.CHATML, eos="<|im_end|>")
    else:
        hf_folders.write_folder(folder, hf_folders.KINDS[kind](corpus), hf_folders.INSTRUCT)
        merge_all(folder)
    ours = tokenizers.load(folder)
    config = dataclasses.replace(SMALL, vocab_size=520)
    files = dict(ours.files)
    gguf_export.export(make_params(config), config, tmp_path / "m.gguf", tokenizer=files)
    pieces = chat_template.pieces(MESSAGES, ours.chat_template, ours)
    texts = [text for text in TEXTS if text]
    found = ask(tmp_path / "m.gguf", tmp_path, texts=texts, marked=["".join(piece.text for piece in pieces)])
    for text, ids in zip(texts, found["texts"]):
        composed = kind == "qwen2" and "\u0301" in text  # by Qwen's NFC, which llama.cpp has not
        assert (ids == ours.encode(text, first=ours.leads_sections)) != composed, text
    assert found["marked"][0] == layouts.encode(MESSAGES, "template", ours).tokens.tolist()


def test_smollm2_says_the_same_in_float32(smollm2_file, tmp_path, capsys):
    convert.export_student(smollm2_file, tmp_path / "out", form="gguf")
    source = students.open_source(tmp_path / "out")
    params, tokenizer = source.load(source.config, make_mesh(MeshConfig())), tokenizers.load(source.tokenizer)
    asked = [[Message("user", question)] for question in QUESTIONS]
    prompts = [layouts.encode(messages, "template", tokenizer).tokens.tolist() for messages in asked]
    texts = [
        "".join(piece.text for piece in chat_template.pieces(messages, tokenizer.chat_template, tokenizer))
        for messages in asked
    ]
    found = ask(tmp_path / "out/model.gguf", tmp_path, marked=texts, prompts=prompts)
    assert found["marked"] == prompts
    for prompt, reply in zip(prompts, found["replies"]):
        with capsys.disabled():
            print(f"\n{len(reply)} ids: {tokenizer.decode(reply)[:90]!r}")
        *ours, after = greedy(params, source.config, prompt, reply)
        assert ours == reply
        assert (after in tokenizer.eos_ids) == (len(reply) < 64)
