"""The miniature experiment with a layout, a benchmark, a teacher, puzzles and a curriculum of your own.

python -m experiments.run --config=docs/examples/own.py --workdir=runs/own
"""

from pathlib import Path

from ml_collections import ConfigDict

from orca_jax.config import complete
from orca_jax.configs import mini

HERE = Path(__file__).parent


def get_config(arg: str = "") -> ConfigDict:
    """`runlocal` is the default size here."""
    config = mini.get_config("runlocal")
    config.plugins = [
        str(HERE / f"{name}.py") for name in ("brackets", "sums", "terse", "majority", "handover")
    ]
    config.puzzles.families = ("navigate", "majority")
    config.teachers = [dict(name="terse", kind="terse"), dict(name="expert")]
    config.data.layout = "brackets"
    config.curriculum = [
        dict(name="both", kind="handover", datasets={"terse": 1.0, "expert": 1.0}, steps=6, warmup_steps=1)
    ]
    config.benchmarks = {"sums": str(HERE / "sums.jsonl")}
    return complete(config)
