"""orca_jax: explanation tuning of small language models, after Orca (arXiv 2306.02707).

The names of docs/python.md are here, loaded when they are first used.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
# Each name of docs/python.md, and what it is.
NAMES = {
    "run": "experiments.run:run",
    "items": "reporting.run_tables:items",
    "load_student": "serving.local:load_student",
    "open_student": "training.students:open_source",
    "Message": "records:Message",
    "Sampling": "records:Sampling",
    "encode_all": "data.layouts:encode_all",
    "build_row": "data.rows:build_row",
    "stack": "data.rows:stack",
    "forward": "student.llama:apply",
    "make_mesh": "student.sharding:make_mesh",
    "make_optimizer": "training.step:make_optimizer",
    "make_steps": "training.step:make_steps",
    "MeshConfig": "config:MeshConfig",
    "OptimizerConfig": "config:OptimizerConfig",
}


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = NAMES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *NAMES])
