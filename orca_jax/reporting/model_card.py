"""The model card of an exported student, of its workdir: data and their terms, training, results, prompts."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orca_jax import __version__, artifacts, hub, plugins
from orca_jax.config import ExperimentConfig, load
from orca_jax.config_teachers import TeacherConfig
from orca_jax.data import chat_template
from orca_jax.data import tokenizer as tokenizers
from orca_jax.queries import flan
from orca_jax.reporting.report_sources import TABLE, Run, config_of
from orca_jax.reporting.tables import counted, markdown

README = "README.md"
PAGE = "https://huggingface.co/"
EXAMPLE = (
    ("system", "You are an AI assistant. Explain your answer step by step."),
    ("user", "How many legs do three cats and a bird have?"),
)
USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{to}")
model = AutoModelForCausalLM.from_pretrained("{to}")
messages = [{messages}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=512)[0]))
```"""


def write(workdir: Path, exported: Path, to: str) -> Path:
    """Writes the card of the workdir's student into the folder that it was exported to; returns its path.

    Raises:
      ArtifactError: no student was trained there, or its config was not kept.
    """
    training = artifacts.read_manifest(workdir / "training")
    if not (kept := config_of(Run("", workdir))):
        raise artifacts.ArtifactError(
            f"{workdir} has no experiment.json, of which the model card is made; run experiments.run there"
        )
    config, table = load(kept), workdir / TABLE
    results = table.read_text("utf-8") if table.is_file() else "Nothing was evaluated."
    sections = {
        "Training data": _data(config, workdir),
        "Training": _training(config, training),
        # The workdir's tables below this heading, without their own first one.
        "Results": re.sub(r"(?m)^# .*\n|^(?=##)", lambda found: "" if found[0] else "#", results),
        "Prompts": _prompts(exported, to),
    }
    init = config.student.init
    start = f"{_linked(init, training)}, whose terms apply to it too" if init else "random weights"
    number = artifacts.read_manifest(exported)["counts"]["parameters"]
    about = (
        f"A student of {counted(number, 'parameter')}, tuned on explanation traces with orca_jax "
        f"{__version__} (config {config.name}, seed {config.seed}). It started from {start}."
    )
    parts = [f"---\n{_metadata(config)}\n---", f"# {to.rpartition('/')[2]}", about]
    parts += [f"## {title}\n\n{text.strip()}" for title, text in sections.items()]
    with artifacts.atomic_write(exported / README) as file:
        file.write("\n\n".join(parts) + "\n")
    return exported / README


def _metadata(config: ExperimentConfig) -> str:
    """The header that the hub reads."""
    from huggingface_hub import ModelCardData

    data = [hub.repository(teacher.path) for teacher in config.teachers if teacher.kind == "file"]
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["orca_jax", "explanation-tuning"],
        base_model=hub.repository(config.student.init) or None,
        datasets=[name.removeprefix("datasets/") for name in data if name] or None,
    )
    return str(card.to_yaml()).strip()


def _linked(path: str, manifest: Mapping[str, Any]) -> str:
    """A path for strangers: a link to its repository, with the commit; else its last part."""
    if not (repository := hub.repository(path)):
        return f"`{Path(path).name}`"
    taken = manifest.get("revisions", {}).items()
    commit = next((one["commit"][:12] for named, one in taken if hub.repository(named) == repository), "")
    return f"[{repository}]({PAGE}{repository})" + (f" at `{commit}`" if commit else "")


def _data(config: ExperimentConfig, workdir: Path) -> str:
    rows = []
    for teacher in config.teachers:
        collected = artifacts.read_manifest(workdir / "traces" / teacher.name)
        examples = artifacts.read_manifest(workdir / "tokens" / teacher.name)["counts"]["examples"]
        said = described(config, teacher, collected)
        rows.append([teacher.name, said[0], f"{collected['counts']['traces']:,}", f"{examples:,}", said[1]])
    return markdown(("data set", "teacher", "traces", "trained on", "terms"), rows)


def described(
    config: ExperimentConfig, teacher: TeacherConfig, collected: Mapping[str, Any]
) -> tuple[str, str]:
    """What a teacher is, and the terms of its replies, as far as the run knows them."""
    if teacher.kind == "oracle":
        return "procedural oracle of orca_jax", "Apache-2.0"
    if teacher.api:
        host = re.sub(r"^\w+://([^/:]+).*", r"\1", teacher.api.endpoints[0].base_url)
        return f"`{teacher.api.name}`, asked at {host}", "its provider's, on the use of its outputs"
    if teacher.kind in ("file", "student"):
        what = _linked(teacher.path, collected)
        if hub.repository(teacher.path):
            return what, "as its page says, and those of the models that wrote it"
        sha256 = collected["inputs"][teacher.kind][:12]
        return f"{what}, sha256 {sha256}", "not known to the run; those of the models that wrote it"
    if source := plugins.TEACHERS.sources.get(teacher.kind):
        what = f"`{teacher.kind}` of the plugin {source.name}, sha256 {source.digest[:12]}"
        return what, "not known to the run; those of whatever the plugin asks"
    kinds = sorted({kind for draw in config.flan for kind, path in draw.sources.items() if path})
    return f"FLAN's own {teacher.kind}", "; ".join(flan.LICENCES[kind] for kind in kinds)


def _training(config: ExperimentConfig, training: Mapping[str, Any]) -> str:
    rows = []
    for stage in config.curriculum:
        length = f"{stage.steps} steps" if stage.steps else f"{stage.epochs} epochs"
        rows.append([stage.name, ", ".join(stage.names), length, stage.learning_rate])
    rank = config.student.lora.rank
    adapters = f"LoRA of rank {rank}, merged" if rank else "all weights"
    return (
        markdown(("stage", "data sets", "length", "peak learning rate"), rows)
        + f"\n{counted(training['counts']['steps'], 'step')} of {config.train.batch_rows} rows of "
        f"{config.data.row_length} tokens, {config.optimizer.kind}, {adapters}; loss on "
        f"{'prompts too' if config.data.supervise == 'everything' else f'{config.data.supervise} answers'}."
    )


def _prompts(exported: Path, to: str) -> str:
    tokenizer = tokenizers.load(exported)
    for asked in (EXAMPLE, EXAMPLE[1:]):  # a template may take no system message
        with contextlib.suppress(chat_template.LayoutError):
            text = chat_template.text_of(
                str(tokenizer.chat_template), asked, tokenizer.special_names, prompt=True
            )
            break
    messages = ", ".join(f'{{"role": "{role}", "content": "{said}"}}' for role, said in asked)
    return (
        "The tokenizer's chat template writes prompts as the student was trained on them:\n\n"
        f"{USE.format(to=to, messages=messages)}\n\nA prompt in full:\n\n```\n{text}\n```"
    )
