"""Students on disk: a model folder, a GGUF file, an imported student, or a workdir with a trained one."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from orca_jax import artifacts, config_check, hub, plugins, storage
from orca_jax.artifacts import ArtifactError
from orca_jax.config import ExperimentConfig, LoraConfig
from orca_jax.data import layouts
from orca_jax.data import tokenizer as tokenizers
from orca_jax.data.tokenizer import TokenizerError
from orca_jax.data.tokenizer_gguf import find
from orca_jax.student import huggingface, llama, lora, parameters, presets, sharding
from orca_jax.student.gguf import Gguf
from orca_jax.student.huggingface_folder import ADAPTER, CONFIG_FILE, Folder
from orca_jax.student.presets import LlamaConfig
from orca_jax.training.checkpoints import load_params

log = logging.getLogger(__name__)
IMPORT = "import"
CHECKPOINTS = f"checkpoints/*/{storage.COMMITTED}"
PROBE = "Step 1: 17 + 25 = 42. So the answer is (B), élan."


@dataclasses.dataclass(frozen=True)
class SavedStudent:
    """A student on disk.

    Attributes:
      config: its shape.
      tokenizer: the path of its tokenizer, for data.tokenizer.load.
      layout: the prompt layout that it was trained in; empty if that is not recorded, see `own_layout`.
      identify: gives the fingerprint of its weights, for which a model's files are read whole.
      load: takes a config of the same shape with at least as many ids, which also says whether layers are
        stacked, a mesh, and the type of matrices (float32 if none is given; norms are float32), and loads
        the parameters; nothing is loaded whole in another type first.
    """

    config: LlamaConfig
    tokenizer: Path
    layout: str
    identify: Callable[[], str]
    load: Callable[..., llama.Params]

    @functools.cached_property
    def fingerprint(self) -> str:
        return self.identify()

    @property
    def own_layout(self) -> str:
        """The default layout of its prompts; empty if it is not known."""
        return self.layout or layouts.default(self.tokenizer)


def open_source(path: str | Path) -> SavedStudent:
    """Opens the student at `path`, which may be in a bucket or, a model's folder, on the Hugging Face hub.

    Raises:
      ArtifactError: there is no student.
      HubError: the hub's repository cannot be read.
      UnsupportedModelError: a model folder that cannot be read.
    """
    path = Path(storage.local(hub.model(str(path))))
    file = find(path)
    if file or any((path / name).is_file() for name in (CONFIG_FILE, ADAPTER)):
        model = Gguf(file) if file else Folder(path)
        files = [file] if file else sorted({path / CONFIG_FILE, *model.files.values()})
        return SavedStudent(
            config=model.config,
            tokenizer=model.directory,
            layout="",
            identify=lambda: artifacts.digest([artifacts.file_digest(one) for one in files]),
            load=functools.partial(huggingface.load, model.directory),
        )
    for folder, checkpoints in ((path, "checkpoints"), (path / "training", "training/checkpoints")):
        if not (folder / artifacts.MANIFEST).is_file():
            continue
        manifest = artifacts.read_manifest(folder)
        provenance = manifest["provenance"]
        if provenance.get("program") not in (IMPORT, "train"):
            raise ArtifactError(f"{path} was made by {provenance.get('program')!r} and holds no student")
        plugins.reopen_layout(folder, manifest)
        config = config_check.build(LlamaConfig, provenance["student"])
        return SavedStudent(
            config=dataclasses.replace(config, lora=LoraConfig()),
            tokenizer=path / "tokenizer",
            layout=provenance.get("layout", ""),
            identify=functools.partial(str, manifest["fingerprint"]),
            load=functools.partial(_restore, path / checkpoints, config),
        )
    raise ArtifactError(
        f"{path} holds no student: neither {CONFIG_FILE} (a Hugging Face model), nor a GGUF file, nor an "
        "imported student, nor a workdir whose training is finished"
    )


def _restore(
    checkpoints: Path, saved: LlamaConfig, wanted: LlamaConfig, mesh: Mesh, dtype: Any = jnp.float32
) -> llama.Params:
    """`SavedStudent.load` of a checkpoint: one part at a time is on the devices in the saved type.

    Raises:
      ValueError: `wanted` has fewer ids.
    """
    if wanted.vocab_size < saved.vocab_size:
        raise ValueError(f"{wanted.vocab_size} ids are fewer than the {saved.vocab_size} of the weights")

    def as_wanted(part: llama.Params) -> llama.Params:
        part = lora.merge(part, saved.lora)
        part, _ = (parameters.stacked if wanted.scan_layers else parameters.per_layer)(part, wanted)
        return parameters.cast(parameters.resize_vocabulary(part, saved, wanted), dtype)

    def convert(part: llama.Params) -> llama.Params:
        placed = sharding.shardings(jax.eval_shape(as_wanted, part), mesh)
        return jax.block_until_ready(jax.jit(as_wanted, out_shardings=placed)(part))

    def part(path: str) -> str:
        module = path.rpartition("/")[0]
        return huggingface.LAYER.sub("", module) if wanted.scan_layers else module

    step, params = load_params(checkpoints, mesh, convert, part)
    log.info("read the parameters of step %d", step)
    return params


def run_settings(config: ExperimentConfig, source: SavedStudent) -> artifacts.Section:
    """The settings of an experiment that replies of a student depend on that it did not train."""
    layout = source.layout or config.data.layout or source.own_layout or layouts.PAPER
    # `auto` is of training: the same options do not make decoding faster (docs/generation.md).
    options = {} if config.compiler_options == "auto" else config.compiler_options
    given = {"layout": layout, "compiler_options": options}
    return artifacts.joined(artifacts.unrecorded(given), dtype_setting(config))


def dtype_setting(config: ExperimentConfig) -> artifacts.Section:
    """The number type that a student computes its replies in; of a time without the setting, float32."""
    found = parameters.compute_dtype(config.evaluation.dtype).name
    return artifacts.Section({"dtype": found}, {"dtype": "float32"})


def to_prepare(config: ExperimentConfig) -> ExperimentConfig:
    """The config with its layout filled in.

    If `data.layout` is empty, that is the layout that the initial weights were trained in, the tokenizer's
    chat template, or the paper's.
    """
    tokenizer, init = tokenizer_path(config), config.student.init
    recorded = open_source(init).layout if init else ""
    own = layouts.default(tokenizer) if tokenizer else ""
    by_default = (recorded if recorded != layouts.TEMPLATE else own) or own or layouts.PAPER
    layout: Any = config.data.layout or by_default
    return dataclasses.replace(config, data=dataclasses.replace(config.data, layout=layout))


def as_made(config: ExperimentConfig, manifest: Mapping[str, Any]) -> ExperimentConfig:
    """The config with the layout that its workdir was prepared with.

    Raises:
      ArtifactError: the config names another layout.
    """
    found = manifest["provenance"]["layout"]
    if config.data.layout not in ("", found):
        raise ArtifactError(
            f"the workdir was prepared with data.layout={found!r}, and the config says "
            f"{config.data.layout!r}; set data.layout={found!r}, or take a new workdir"
        )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, layout=found))


def tokenizer_path(config: ExperimentConfig) -> str:
    """The path of the experiment's tokenizer, or its reference; empty if it is to be trained.

    Raises:
      TokenizerError: it gives other ids than the tokenizer of the initial weights.
    """
    given, init = config.data.tokenizer, config.student.init
    given = hub.reference(given) or given
    if not init:
        return given
    own = open_source(init).tokenizer
    if not given:
        return hub.reference(init) or storage.source(own)
    try:
        theirs = tokenizers.load(own)
    except TokenizerError:  # the weights came without one
        return given
    if tokenizers.load(given).encode(PROBE, first=True) != theirs.encode(PROBE, first=True):
        raise TokenizerError(
            f"data.tokenizer={given} gives other ids than the tokenizer that student.init={init} was trained "
            "with; set data.tokenizer='' to use that one"
        )
    return given


def check_tokenizer(config: ExperimentConfig, workdir: Path) -> None:
    """Raises TokenizerError if the tokenizer was made of a repository whose tokenizer is another by now."""
    manifest = artifacts.recorded(workdir / "tokenizer")
    if (made := manifest["inputs"].get("source")) is None:
        return
    source = tokenizer_path(config)
    if tokenizers.load(source).fingerprint != made:
        commits = [taken["commit"] for taken in manifest.get("revisions", {}).values()]
        raise TokenizerError(
            f"{source} has another tokenizer now than when {workdir / 'tokenizer'} was made of it; name its "
            f"revision (@{', @'.join(commits)}), or take a new workdir"
        )


def shape(config: ExperimentConfig, workdir: Path, source: SavedStudent | None) -> LlamaConfig:
    """The student's shape, with the ids of the workdir's tokenizer or of the initial weights.

    Raises:
      TokenizerError: the config gives another number of ids.
    """
    ids = tokenizers.load(workdir / "tokenizer").vocab_size
    if source is None:
        return presets.shape(config.student, ids)
    ids, wanted = max(ids, source.config.vocab_size), config.student.vocab_size
    if wanted not in (0, ids):
        raise TokenizerError(
            f"student.vocab_size={wanted}, but tokenizer and {config.student.init} need {ids}; set it to 0"
        )
    return presets.shape(config.student, ids, source.config)


def initial(source: SavedStudent, config: LlamaConfig, mesh: Mesh, seed: int) -> llama.Params:
    """A source's parameters, with new adapters if the config has any."""
    base = source.load(
        dataclasses.replace(config, lora=LoraConfig()), mesh, jnp.dtype(config.lora.base_dtype)
    )
    if not config.lora.rank:
        return base
    # Only the adapters leave the compiled function, so the rest of it is never computed.
    draw = jax.jit(lambda: lora.split(llama.init(config, seed), config.lora).trained)
    placed = sharding.shardings(jax.eval_shape(draw), mesh)
    return lora.added(base, jax.device_put(draw(), placed))


def is_trained(workdir: Path) -> bool:
    """Whether a student was trained in a workdir, at least to its first checkpoint."""
    directory = workdir / "training"
    return (directory / artifacts.MANIFEST).exists() or any(directory.glob(CHECKPOINTS))
