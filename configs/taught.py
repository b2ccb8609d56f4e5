"""A trained student as teacher: the mini answers, and a student of a third of its size learns.

The teacher is decoded greedily; its own teachers were procedural oracles. Launch, after `make mini`:

    python -m experiments.run --config=configs/taught.py --workdir=runs/taught

`--config.teachers[0].path` names another teacher: a workdir, an imported student, or a model folder.
"""

from ml_collections import ConfigDict

from orca_jax.config import complete
from orca_jax.configs import mini
from orca_jax.configs.arguments import parse


def get_config(arg: str = "") -> ConfigDict:
    """`variant=default`, `runlocal` (seconds instead of minutes)."""
    args = parse(arg)
    config = mini.get_config("runlocal" if args.runlocal else "")
    config.name = "taught"
    config.puzzles.per_family = 1500
    config.teachers = [dict(name="mini", kind="student", path="runs/mini", max_tokens=256)]
    config.curriculum = [
        dict(name="mini", datasets={"mini": 1.0}, epochs=3, learning_rate=2e-3, warmup_steps=50)
    ]
    config.student.update(hidden_size=96, intermediate_size=256, num_layers=3, num_heads=3, num_kv_heads=3)
    if args.runlocal:
        config.puzzles.per_family = 20
        config.teachers[0]["max_tokens"] = 16
        config.curriculum[0].update(steps=3, warmup_steps=1)
        config.student.update(
            hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8
        )
    return complete(config)
