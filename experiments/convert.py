"""Released weights in, trained weights out: each command does nothing where its folder is finished.

python -m experiments.convert import --model=MODEL_FOLDER --out=runs/imported
python -m experiments.convert export --model=runs/openorca --out=exported --dtype=bfloat16
python -m experiments.convert export --model=runs/openorca --out=exported --form=gguf --dtype=q8_0
python -m experiments.convert adapter --model=runs/lora --out=adapter
python -m experiments.convert push --model=runs/openorca --to=OWNER/NAME
python -m experiments.convert puzzles --out=puzzles.jsonl --families=tracking --count=100
"""

from __future__ import annotations

from orca_jax import cli

FORM = cli.Option(
    "form", "huggingface", "Of an export: a model folder, or a GGUF file.", choices=("huggingface", "gguf")
)
DTYPE = cli.Option(
    "dtype",
    "float32",
    "Of exported weights; q8_0 in GGUF.",
    choices=("float32", "bfloat16", "float16", "q8_0"),
)
TRAINED = cli.Option("model", "", "A workdir whose student was trained with adapters.", required=True)
RUN = cli.Option("model", "", "A finished workdir.", required=True)
TO = cli.Option("to", "", "A repository of the hub, OWNER/NAME; made where it is not there.", required=True)
PUBLIC = cli.Option("public", False, "The repository may be public; else it is private.")
PROGRAM = cli.Program(
    __doc__,
    commands={
        "import": cli.Command(
            "A model folder as a checkpoint with checksums.",
            cli.MODEL,
            cli.OUT,
            made=("{out}",),
            then="generate chat --model={out}",
        ),
        "export": cli.Command(
            "A student as a Hugging Face model folder or a GGUF file.",
            cli.MODEL,
            cli.OUT,
            FORM,
            DTYPE,
            cli.LAYOUT,
            made=("{out}",),
            then="generate chat --model={out}",
        ),
        "adapter": cli.Command("Trained adapters in PEFT's format.", TRAINED, cli.OUT, made=("{out}",)),
        "push": cli.Command(
            "Uploads an export and its model card to the Hugging Face hub, in one commit.\n\n"
            "The token is that of HF_TOKEN or of `hf auth login`. The export is made in TMPDIR.",
            RUN,
            TO,
            DTYPE,
            cli.LAYOUT,
            PUBLIC,
        ),
        "puzzles": cli.Command(
            "Puzzles as JSON lines for other codebases: prompt, answer, and what checks a reply.",
            cli.Option("out", "", "The file.", required=True),
            cli.Option("families", list, "Of puzzles; empty: the serial ones."),
            cli.Option("difficulties", list, "Taken in turn; empty: 2, 4 and 8."),
            cli.Option("count", 1000, "Puzzles of a family.", lower_bound=1),
            cli.Option("seed", 0, "Of the draws."),
            cli.Option("split", "train", "`test`: those that no training sees.", choices=("train", "test")),
            cli.Option("message", 7, "System message, 1 to 16.", lower_bound=1),
        ),
    },
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import logging
import tempfile
from pathlib import Path
from typing import Any

from orca_jax import artifacts, config_check, files, hub, plugins
from orca_jax.artifacts import Artifact, plain, read_manifest
from orca_jax.config import MeshConfig
from orca_jax.data import layouts, tokenizer_export
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.tokenizer import Tokenizer
from orca_jax.evaluation import puzzle_rewards
from orca_jax.queries.puzzles import SERIAL_FAMILIES
from orca_jax.reporting import model_card
from orca_jax.student import gguf_export, huggingface
from orca_jax.student.parameters import compute_dtype
from orca_jax.student.presets import LlamaConfig
from orca_jax.student.sharding import make_mesh
from orca_jax.training import students
from orca_jax.training.checkpoints import Checkpoints, load_params

log = logging.getLogger(__name__)
EXPORTED = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.gguf")


def import_student(source: str | Path, out: Path) -> None:
    """A model folder as a checkpoint with checksums, its tokenizer beside: what `student.init` takes too."""
    opened = students.open_source(source)
    provenance = {"program": students.IMPORT, "student": plain(opened.config), "layout": opened.layout}
    provenance |= plugins.provenance((plugins.LAYOUTS, opened.layout))
    artifact = Artifact(out, provenance, {"source": opened.fingerprint}, {"source": source})
    if artifact.finished():
        log.info("%s is imported already", out)
        return
    artifact.begin(own=("tokenizer", "checkpoints"))
    tokenizers.load(opened.tokenizer).save(out / "tokenizer")
    params = opened.load(opened.config, make_mesh(MeshConfig()))
    checkpoints = Checkpoints(out / "checkpoints", keep=1, note={"fingerprint": opened.fingerprint})
    if not checkpoints.steps():
        checkpoints.save(0, {"params": params})
    checkpoints.close()
    artifact.finish({"parameters": opened.config.parameter_count}, hub.revisions(str(source)))
    log.info("imported %d parameters into %s", opened.config.parameter_count, out)


def export_student(
    source: str | Path, out: Path, *, dtype: str = "float32", layout: str = "", form: str = "huggingface"
) -> None:
    """A student as a Hugging Face model folder, or as `model.gguf` in the folder `out`.

    Raises:
      ValueError: its layout is not known, and not given; or the form has no such dtype.
    """
    if dtype not in (known := gguf_export.DTYPES if form == "gguf" else huggingface.DTYPES):
        raise ValueError(f"--dtype={dtype} of --form={form}; known: {', '.join(known)}")
    opened = students.open_source(source)
    layout = layout or opened.own_layout
    if layout not in layouts.CONTROL_TOKENS:
        raise ValueError(
            f"layout {layout!r} of {source}: give --layout, one of {', '.join(layouts.CONTROL_TOKENS)}"
        )
    provenance = {"program": "export", "dtype": dtype, "layout": layout}
    provenance |= plugins.provenance((plugins.LAYOUTS, layout))
    if form != FORM.default:
        provenance["form"] = form
    artifact = Artifact(out, provenance, {"source": opened.fingerprint}, {"source": source})
    if artifact.finished():
        log.info("%s is exported already", out)
        return
    artifact.begin(own=EXPORTED)
    tokenizer: Any = tokenizers.load(opened.tokenizer)
    config, length = opened.config, opened.config.max_positions
    # Other types are rounded from float32, and GGUF has vectors in it.
    read_as = "bfloat16" if (form, dtype) == (FORM.default, "bfloat16") else "float32"
    params = opened.load(config, make_mesh(MeshConfig()), compute_dtype(read_as))
    if form == "gguf":
        described = tokenizer_export.files(tokenizer, layout, model_max_length=length)
        stop = layouts.stop_ids(layout, tokenizer)
        count = gguf_export.export(
            params, config, out / "model.gguf", tokenizer=described, dtype=dtype, stop=stop
        )
    else:
        tokenizer_export.write(tokenizer, layout, out, model_max_length=length)
        special = special_ids(tokenizer, layout)
        count = huggingface.export(params, config, out, dtype=dtype, special=special)
    artifact.finish({"parameters": count}, hub.revisions(str(source)))
    log.info("exported %d parameters as %s to %s", count, dtype, out)


def special_ids(tokenizer: Tokenizer, layout: str) -> dict[str, Any]:
    """The ids that other programs need; the end of sequence is the one trained to end an answer."""
    stop = layouts.stop_ids(layout, tokenizer)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stop[0] if len(stop) == 1 else list(stop),
        "pad_token_id": tokenizer.pad_id,
    }


def export_adapter(source: Path, out: Path) -> None:
    """The adapters of a trained workdir in PEFT's format.

    Raises:
      ValueError: it was trained without adapters.
    """
    manifest = read_manifest(source / "training")
    config = config_check.build(LlamaConfig, manifest["provenance"]["student"])
    provenance = {"program": "adapter", "lora": plain(config.lora)}
    artifact = Artifact(out, provenance, {"source": manifest["fingerprint"]}, {"source": source})
    if artifact.finished():
        log.info("%s is written already", out)
        return
    _, params = load_params(source / "training/checkpoints")
    count = huggingface.export_adapters(params, config, out)
    artifact.finish({"parameters": count})


def push(given: cli.Options) -> None:
    """Exports the student of a workdir, and uploads it with a model card."""
    artifacts.read_manifest(Path(given.model) / "training")
    hub.create(given.to, public=given.public)  # so that what the hub refuses is known before the export
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        export_student(given.model, out, dtype=given.dtype, layout=given.layout)
        model_card.write(Path(given.model), out, given.to)
        for name in (artifacts.MANIFEST, artifacts.STARTED):  # of this machine
            (out / name).unlink(missing_ok=True)
        log.info("uploaded to %s", hub.push(out, given.to, f"Student of {Path(given.model).resolve().name}"))


def write_puzzles(given: cli.Options) -> None:
    """Writes puzzles as JSON lines."""
    levels = [int(level) for level in given.difficulties or (2, 4, 8)]
    chosen = given.families or list(SERIAL_FAMILIES)
    made = puzzle_rewards.rows(
        chosen, levels, given.count, seed=given.seed, split=given.split, message=given.message
    )
    count = files.write_json_rows(given.out, made)
    log.info("%d puzzles in %s; a reply is checked by %s", count, given.out, puzzle_rewards.CHECKER)


def main() -> None:
    PROGRAM.main(
        **{"import": lambda given: import_student(given.model, Path(given.out))},
        export=lambda given: export_student(
            given.model, Path(given.out), dtype=given.dtype, layout=given.layout, form=given.form
        ),
        adapter=lambda given: export_adapter(Path(given.model), Path(given.out)),
        push=push,
        puzzles=write_puzzles,
    )


if __name__ == "__main__":
    main()
