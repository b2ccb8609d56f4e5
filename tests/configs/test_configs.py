"""Every config, in every variant, resolves; what it resolves to is kept in tests/golden/configs."""

import dataclasses
import functools
import importlib
import itertools
import json
import re
from pathlib import Path

import pytest

from orca_jax.config import load as load_one
from orca_jax.config_arms import load_set
from orca_jax.student.presets import shape

FOLDER = Path(__file__).resolve().parents[2] / "configs"
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "configs"
NAMES = sorted(
    str(path.relative_to(FOLDER).with_suffix("")).replace("/", ".")
    for path in FOLDER.rglob("*.py")
    if path.stem not in ("__init__", "arguments", "miniature")
)


def module(name):
    return importlib.import_module(f"orca_jax.configs.{name}")


@functools.cache
def resolved(name, argument):
    """An experiment, or a set of arms."""
    config = module(name).get_config(argument)
    return load_set(config) if "arms" in config else load_one(config)


def variants(name):
    """A config's variants, from what it says of an unknown one."""
    with pytest.raises(ValueError) as refusal:
        module(name).get_config("variant=?")
    known = re.search(r"variant=([\w|]+)$", str(refusal.value))
    assert known, refusal.value
    return known[1].split("|")


ARGUMENTS = [
    (name, f"variant={variant}{local}")
    for name in NAMES
    for variant, local in itertools.product(variants(name), ("", ",runlocal"))
]


def shown(config):
    return json.dumps(dataclasses.asdict(config), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def golden_path(name, argument):
    stem = argument.replace("variant=", "").replace(",", "-")
    return GOLDEN / f"{name}-{stem}.json"


def test_there_are_configs():
    assert "mini" in NAMES


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_resolves_to_its_golden_file(name, argument, regenerate_golden):
    text, path = shown(resolved(name, argument)), golden_path(name, argument)
    if regenerate_golden:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), (
        f"no {path}: run pytest tests/configs --regenerate-golden and look at the difference"
    )
    assert text == path.read_text(encoding="utf-8"), "if meant so: pytest tests/configs --regenerate-golden"


def test_no_golden_file_is_left_over(regenerate_golden):
    known = {golden_path(name, argument) for name, argument in ARGUMENTS}
    left_over = set(GOLDEN.glob("*.json")) - known
    if regenerate_golden:
        for path in left_over:
            path.unlink()
    else:
        assert not left_over


@pytest.mark.parametrize("name", NAMES)
def test_first_variant_is_the_default(name):
    assert resolved(name, "") == resolved(name, f"variant={variants(name)[0]}")


@pytest.mark.parametrize("name", NAMES)
def test_has_a_document(name):
    assert module(name).__doc__.strip()


@pytest.mark.parametrize(("name", "argument"), [pair for pair in ARGUMENTS if "runlocal" in pair[1]])
def test_runlocal_shrinks_to_seconds(name, argument):
    config = resolved(name, argument)
    config = config.config(config.arms[0], 0) if hasattr(config, "arms") else config
    assert shape(config.student, config.student.vocab_size).parameter_count < 200_000
    assert all(0 < stage.steps <= 10 for stage in config.curriculum)
    assert config.evaluation.max_tokens <= 32


@pytest.mark.parametrize("name", ["orca_13b", "orca_7b", "orca_70b", "orca_llama3_8b"])
@pytest.mark.parametrize("local", ["", ",runlocal"])
def test_released_weights_bring_shape_and_tokenizer(name, local):
    config = load_one(module(name).get_config(f"init=/share/weights{local}"))
    assert (config.student.init, config.student.preset) == ("/share/weights", "")
    assert (config.student.vocab_size, config.data.tokenizer) == (0, "")
    row_length = load_one(module(name).get_config(local.strip(","))).data.row_length
    assert config.data.row_length == row_length, "what else it says is as without"


def test_a_trace_file_and_a_released_student_are_two_words():
    config = load_one(module("openorca").get_config("data=rows.jsonl,init=owner/name"))
    assert (config.student.init, config.student.vocab_size, config.data.tokenizer) == ("owner/name", 0, "")
    assert config.student.lora.rank > 0
    assert [teacher.path for teacher in config.teachers] == ["rows.jsonl"]
    both = load_one(module("openorca").get_config("variant=two_teachers,data=rows.jsonl"))
    assert [teacher.path for teacher in both.teachers] == ["rows.jsonl", "gpt4.jsonl"]
