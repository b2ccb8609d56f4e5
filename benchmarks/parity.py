"""Our students beside transformers' on the same weights: the tables of docs/students.md.

python -m benchmarks.parity families
python -m benchmarks.parity memory

`families`: small random models of every family, 512 positions: the largest difference between logits,
whether 64 greedy tokens are equal, whether import and export give every weight back bit for bit. `memory`:
a random model of 1.1B parameters in bfloat16, imported as float32 by each in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers

from benchmarks.racing import command, markdown
from orca_jax.config import MeshConfig
from orca_jax.student import huggingface, huggingface_folder, llama, presets
from orca_jax.student.engine import Generator
from orca_jax.student.presets import LlamaConfig
from orca_jax.student.sharding import make_mesh

LENGTH, PROMPT, NEW = 512, 50, 64
RUNNING: Any = dict(vocab_multiple=16, scan_layers=False)  # how ours runs
SHAPE: dict[str, Any] = dict(
    vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2, bos_token_id=1,
    eos_token_id=2,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=128,
)  # fmt: skip
LINEAR = dict(rope_type="linear", rope_theta=10_000.0, factor=4.0)
ONE_KEY_HEAD = dict(num_attention_heads=3, num_key_value_heads=1, hidden_size=48, tie_word_embeddings=True)
TIED = dict(rope_parameters=LLAMA3, tie_word_embeddings=True, head_dim=32)
GEMMA3 = dict(
    head_dim=32, sliding_window=37, query_pre_attn_scalar=24, pad_token_id=0,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
)  # fmt: skip
# Family to transformers' config class and what differs from SHAPE.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaMA": ("LlamaConfig", dict(num_key_value_heads=4, rms_norm_eps=1e-6)),
    "Llama 2, grouped queries": ("LlamaConfig", dict(rms_norm_eps=1e-5)),
    "Llama 3.x, stretched, tied": ("LlamaConfig", TIED),
    "LLaMA, linear stretch": ("LlamaConfig", dict(rope_parameters=LINEAR)),
    "LLaMA with biases": ("LlamaConfig", dict(attention_bias=True)),
    "Mistral, window 37": ("MistralConfig", dict(sliding_window=37, head_dim=16)),
    "Qwen2": ("Qwen2Config", dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "SmolLM type": ("LlamaConfig", ONE_KEY_HEAD),
    "Qwen3": ("Qwen3Config", dict(head_dim=32, tie_word_embeddings=True)),
    "Gemma 3": ("Gemma3TextConfig", GEMMA3),
    "OLMo 2": ("Olmo2Config", dict(rope_parameters=dict(rope_type="default", rope_theta=5e5))),
    "SmolLM3": ("SmolLM3Config", dict(no_rope_layers=[1, 0, 1], pad_token_id=0)),
}


class Pair(NamedTuple):
    """One model twice: transformers', and ours loaded from the folder that transformers wrote."""

    theirs: Any
    params: llama.Params
    config: LlamaConfig


def make_model(name: str) -> Any:
    """A transformers model of a family, float32, every parameter random (norms and biases too)."""
    kind, changes = FAMILIES[name]
    torch.manual_seed(0)
    settings = getattr(transformers, kind)(**{**SHAPE, **changes})
    model = transformers.AutoModelForCausalLM.from_config(settings, attn_implementation="eager").float()
    around = 0 if kind.startswith("Gemma") else 1  # where norms multiply by 1 + weight
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path:
                parameter.copy_(around + 0.3 * torch.randn_like(parameter))
            elif path.endswith("bias"):
                parameter.normal_(0, 0.3)
            elif "embed" not in path:
                parameter.normal_(0, 0.9 * parameter.shape[1] ** -0.5)
    return model.eval()


def make_pair(name: str, folder: Path) -> Pair:
    theirs = make_model(name)
    theirs.save_pretrained(folder)
    config = dataclasses.replace(huggingface_folder.read_config(folder), **RUNNING)
    return Pair(theirs, huggingface.load(folder, config, make_mesh(MeshConfig())), config)


def random_ids(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, SHAPE["vocab_size"], size).astype(np.int32)


def logit_error(pair: Pair, length: int = LENGTH) -> float:
    """The largest absolute difference between both models' logits over `length` random ids."""
    ids = random_ids(length)
    with torch.no_grad():
        expected = pair.theirs(torch.tensor(ids[None].astype(np.int64))).logits[0].numpy()
    places = np.arange(length, dtype=np.int32)[None]
    apply = jax.jit(llama.apply, static_argnames="config")
    mine, _ = apply(pair.params, ids[None], places, np.ones_like(places), config=pair.config)
    return float(np.abs(np.asarray(mine)[0, :, : pair.config.vocab_size] - expected).max())


def generations(pair: Pair) -> tuple[list[int], list[int]]:
    """Greedy tokens after one random prompt: theirs and ours, which come from the cache one by one."""
    prompt = random_ids(PROMPT, seed=1)
    with torch.no_grad():
        inputs = torch.tensor(prompt[None].astype(np.int64))
        out = pair.theirs.generate(inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    generator = Generator(pair.params, pair.config, stop_ids=(), max_length=PROMPT + NEW)
    [reply] = generator.generate([prompt], max_tokens=NEW)
    return out[0, PROMPT:].tolist(), [int(token) for token in reply.tokens]


def round_trip_differences(pair: Pair, folder: Path) -> list[str]:
    """Tensors that are not bit for bit the same in the model that transformers reads from our export."""
    huggingface.export(pair.params, pair.config, folder, shard_bytes=40_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    if type(again) is not type(pair.theirs):
        return [type(again).__name__]
    before, after = dict(pair.theirs.named_parameters()), dict(again.named_parameters())
    return [name for name in {**before, **after} if not torch.equal(before[name], after[name])]


def families() -> str:
    rows = []
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            pair = make_pair(name, Path(folder) / "theirs")
            theirs, ours = generations(pair)
            exact = not round_trip_differences(pair, Path(folder) / "ours")
        equal = "equal" if theirs == ours else "DIFFERENT"
        rows.append([name, f"{logit_error(pair):.1e}", equal, "bit-exact" if exact else "DIFFERENT"])
    return markdown(["Family", "largest logit difference", "64 greedy tokens", "round trip"], rows)


# TinyLlama's shape: 1.1B parameters.
TINY_LLAMA: Any = dict(hidden_size=2048, intermediate_size=5632, num_layers=22, num_kv_heads=4, head_dim=64)
LOADS = {
    "ours": """
import jax
from orca_jax.student import huggingface, huggingface_folder
from orca_jax.config import MeshConfig
from orca_jax.student.sharding import make_mesh
config = huggingface_folder.read_config(FOLDER)
params = jax.block_until_ready(huggingface.load(FOLDER, config, make_mesh(MeshConfig())))
sizes = [leaf.nbytes for leaf in jax.tree.leaves(params)]
""",
    "transformers": """
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
sizes = [parameter.numel() * parameter.element_size() for parameter in model.parameters()]
""",
}
MEASURE = """
import json, time
began = time.monotonic()
{load}
seconds = time.monotonic() - began
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps(dict(peak=peak, live=sum(sizes), largest=max(sizes), seconds=seconds)))
"""


def write_sized(folder: Path) -> None:
    """Writes a random model as bfloat16 in shards."""
    config = dataclasses.replace(presets.PRESETS["llama-7b"], scan_layers=False, **TINY_LLAMA)
    random, bfloat16 = np.random.default_rng(0), huggingface.DTYPES["bfloat16"]
    params = jax.tree.map(
        lambda leaf: (random.standard_normal(leaf.shape, np.float32) * 0.02).astype(bfloat16),
        jax.eval_shape(lambda: llama.init(config, 0)),
    )
    huggingface.export(params, config, folder, dtype="bfloat16", shard_bytes=1 << 30)


def measure(name: str, folder: Path) -> dict[str, float]:
    """Bytes of an import in a process of its own (its peak, all arrays, the largest), and its seconds."""
    code = MEASURE.format(load=LOADS[name].replace("FOLDER", repr(str(folder))))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def memory() -> str:
    """Both imports of the random model."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_sized(Path(folder))
        for name in LOADS:
            found = measure(name, Path(folder))
            sizes = [found["peak"], found["live"], found["peak"] - found["live"]]
            rows.append([name, *(f"{size / 2**30:.2f}" for size in sizes), f"{found['seconds']:.0f}"])
    header = ["Import of 1.1B parameters", "peak GiB", "of it parameters", "peak less parameters", "seconds"]
    return markdown(header, rows)


def main(table: str) -> None:
    print({"families": families, "memory": memory}[table]())


if __name__ == "__main__":
    command(main)
