"""The embedded default: a student of 1.4M parameters learns puzzles from two procedural oracles.

Paper: the two stages of section 3.1.3 in miniature; the oracles stand in for ChatGPT and GPT-4 and are no
language models. Launch, the default and a version of all eleven families:

    make mini
    make mini CONFIG=configs/mini.py:variant=full WORKDIR=runs/full

Expected on 2 cores: 5 to 10 minutes with set-up (`full`: 83 beside other work, 112 minutes of CPU time).
Result on test puzzles unseen in training, 100 a family, in per cent: empty message 55.0 ± 2.4, step by step
86.3 ± 1.7, chance 25.0; by family in README.md, and of `full` in docs/findings.md.
"""

from ml_collections import ConfigDict

from orca_jax.config import complete
from orca_jax.configs.arguments import TINY, parse
from orca_jax.queries import puzzles

FAMILIES = ("web_of_lies", "navigate", "object_counting", "dyck_languages")


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default|full`, `runlocal` (seconds instead of minutes)."""
    args = parse(arg, variant=("default", "full"))
    config = ConfigDict(dict(name="mini", optimizer={}, mesh={}))
    config.puzzles = dict(
        families=FAMILIES,
        difficulties=(1, 2),
        per_family=3500,
        messages={"1": 1.0, "4": 0.5, "7": 4.0, "8": 0.5},
    )
    config.teachers = [
        dict(name="apprentice", brevity=0.1, reach=2, error_rate=0.05, bare_reply="The answer is {answer}."),
        dict(name="expert", share=0.7),
    ]
    config.data = dict(row_length=512, max_segments=32)
    config.student = dict(
        vocab_size=1536, hidden_size=128, intermediate_size=512, num_layers=4, scan_layers=False
    )
    stages = [
        dict(name=name, datasets={name: 1.0}, learning_rate=1.5e-3) for name in ("apprentice", "expert")
    ]
    stages[0].update(epochs=1, warmup_steps=50, final_fraction=0.5)
    stages[1].update(epochs=2, warmup_steps=20)
    config.curriculum = stages
    config.train = dict(batch_rows=4, checkpoint_every=100, log_every=10)
    config.evaluation = dict(per_family=100, difficulties=(1, 2))
    if args.variant == "full":
        config.name = "mini-full"
        config.student.vocab_size = 2048
        config.puzzles.update(families=tuple(puzzles.BBH_FAMILIES), difficulties=(1, 2, 3), per_family=6000)
        config.evaluation.update(difficulties=(1, 2, 3), per_family=150)
    if args.runlocal:
        config.puzzles.per_family = 40
        config.student.update(TINY)
        for stage in config.curriculum:
            stage.update(steps=3, warmup_steps=1)
        config.evaluation.update(per_family=3, max_tokens=16)
    return complete(config)
