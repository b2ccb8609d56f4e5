"""What every program takes on its command line, on one page.

Nothing heavy is imported here, so that help and mistakes are answered before jax is there.
"""

from __future__ import annotations

import argparse
import ast
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

PACKING = 2.7  # examples in a row of 2,048 positions, section 3.2
DTYPES = ("float32", "bfloat16", "float16")


def doc(program: str) -> str:
    """The docstring of a program's file, which need not be imported for it."""
    source = Path(__file__).with_name(f"{program}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""


# Flags of absl, in groups


def _every() -> None:
    flags.DEFINE_bool("traceback", False, "Show the traceback of errors in config or input.")


def _config() -> None:
    config_flags.DEFINE_config_file("config", None, "The experiment, for example configs/mini.py.")


def _workdir() -> None:
    flags.DEFINE_string("workdir", None, "Where all artifacts go, a bucket too; run again to go on.")
    flags.DEFINE_string("scratch", "", "Where copies of a bucket's files go; empty: the user's cache.")


def _collect() -> None:
    from orca_jax import conversations

    flags.DEFINE_string("to", "", "export: the folder to write.")
    flags.DEFINE_enum("schema", "messages", list(conversations.SCHEMAS), "export: the traces' columns.")
    flags.DEFINE_enum("form", "parquet", ["parquet", "jsonl"], "export: the kind of file.")


def _prepare() -> None:
    flags.DEFINE_integer("workers", 0, "Processes that tokenise; 0: one a core.", lower_bound=0)
    flags.DEFINE_list("beam", None, "Apache Beam's options: the shards are written there.")


def _inspect() -> None:
    flags.DEFINE_string("dataset", "", "A teacher's name, or `validation`; empty: the curriculum's first.")
    flags.DEFINE_integer("epoch", 0, "Which epoch's packing plan.", lower_bound=0)
    flags.DEFINE_integer("row", 0, "Which row of the plan.", lower_bound=0)
    flags.DEFINE_bool("tokens", False, "One token a line, with its arrays, instead of running text.")
    flags.DEFINE_bool("traces", False, "Traces, those left out too, instead of rows.")
    flags.DEFINE_string("collection", "", "Only of this collection.")
    flags.DEFINE_string("task", "", "Only of this task.")
    flags.DEFINE_string("teacher", "", "Only of this teacher.")
    flags.DEFINE_integer("message", None, "Only under this system message; -1: none of the 16.")
    flags.DEFINE_string("flag", "", "Only traces with this flag, see orca_jax/queries/quality.py.")
    flags.DEFINE_string("find", "", "Only traces in which this regular expression is found.")
    flags.DEFINE_integer("sample", 1, "How many traces or rows are drawn of those.", lower_bound=1)
    flags.DEFINE_integer("sample_seed", 0, "Of the draw.")


def _plan() -> None:
    flags.DEFINE_string("topology", None, "A slice: v5p:2x4x4, v5p-64, v5e-256, h100-8.")
    flags.DEFINE_integer("batch", 0, "Rows a step, in place of train.batch_rows.", lower_bound=0)
    flags.DEFINE_bool("analytic", False, "Estimate only; compile nothing.")
    flags.DEFINE_bool("search", False, "Rank alternatives, and compile the best.")
    flags.DEFINE_bool("json", False, "One JSON line a plan.")
    flags.DEFINE_float("packing", PACKING, "Examples in 2,048 positions.", lower_bound=0.01)
    flags.DEFINE_list("examples", [], "NAME=COUNT: examples of data sets; default: the paper's two.")
    flags.DEFINE_string("prices", "", "A file like orca_jax/planning/prices.csv, with prices filled in.")


def _generate() -> None:
    from orca_jax.data.layouts import LAYOUTS, TEMPLATE

    flags.DEFINE_string("student", "", "A workdir, an imported student, or a model folder.")
    flags.DEFINE_enum("prompt_layout", "", ["", *LAYOUTS, TEMPLATE], "Of prompts; empty: the student's own.")
    flags.DEFINE_integer("system_id", 0, "One of the 16 system messages; 0: none.")
    flags.DEFINE_string("system", "", "A system message in words.")
    flags.DEFINE_float("temperature", 0.0, "0 is greedy.", lower_bound=0)
    flags.DEFINE_float("top_p", 1.0, "Nucleus sampling; 1: off.", lower_bound=0, upper_bound=1)
    flags.DEFINE_integer("top_k", 0, "Sampling from the likeliest ids; 0: off.", lower_bound=0)
    flags.DEFINE_integer("max_tokens", 256, "Of a reply.", lower_bound=1)
    flags.DEFINE_integer("max_length", 2048, "Prompt and reply together, in tokens.", lower_bound=2)
    flags.DEFINE_multi_string("stop", [], "A text that ends a reply; may be given more than once.")
    flags.DEFINE_integer("seed", 0, "What sampled replies are drawn by.")
    flags.DEFINE_integer("batch_size", 32, "Replies decoded together, at most.", lower_bound=1)
    flags.DEFINE_integer("tensor", 1, "Devices over which each layer is split.", lower_bound=1)
    flags.DEFINE_string("input", "", "Of `batch`: JSON lines of questions.")
    flags.DEFINE_string("output", "", "Of `batch`: JSON lines of replies.")


def _convert() -> None:
    flags.DEFINE_string("source", "", "A model folder, an imported student, or a workdir.")
    flags.DEFINE_string("out", "", "The folder to write.")
    flags.DEFINE_enum("dtype", "float32", DTYPES, "Of exported weights.")
    flags.DEFINE_string("layout", "", "Of an exported student; empty: its own.")


def _parity() -> None:
    flags.DEFINE_string("folder", "", "Where `memory` keeps its model; empty: a temporary folder.")


ROAD = (_config, _workdir)
FLAGS: Mapping[str, tuple[Callable[[], None], ...]] = {
    "collect": (*ROAD, _collect),
    "prepare": (*ROAD, _prepare),
    "inspect": (*ROAD, _inspect),
    "plan": (_config, _plan),
    "convert": (_convert,),
    "generate": (_generate,),
    "parity": (_parity,),
}


# What may stand before the flags.
WORDS: Mapping[str, tuple[str, ...]] = {
    "collect": ("run", "plan", "estimate", "retry", "status", "export"),
    "convert": ("import", "export", "adapter", "resave"),
    "generate": ("chat", "batch"),
    "parity": ("families", "memory"),
}
WITHOUT_CONFIG = (("collect", "status"), ("collect", "export"))


def required(program: str, word: str) -> tuple[str, ...]:
    """The flags that a program needs."""
    if (program, word) in WITHOUT_CONFIG:
        return ("workdir",)
    of_groups = {
        _config: ("config",),
        _workdir: ("workdir",),
        _plan: ("topology",),
        _convert: ("source", "out"),
        _generate: ("student",),
    }
    return tuple(name for group in FLAGS[program] for name in of_groups.get(group, ()))


def needs_word(program: str) -> bool:
    return program in WORDS and _config not in FLAGS[program]


@functools.cache
def _define(group: Callable[[], None]) -> tuple[str, ...]:
    before = set(flags.FLAGS)
    group()
    return tuple(name for name in flags.FLAGS if name not in before)


def define(program: str) -> list[str]:
    """Defines the flags of a program, where they are not yet; their names in the order of this page."""
    return [name for group in (*FLAGS[program], _every) for name in _define(group)]


def define_every() -> None:
    """Defines the flag that all programs have."""
    _define(_every)


# Parsers of argparse

Add = Callable[..., argparse.Action]


def _export(add: Add) -> None:
    from orca_jax import conversations

    add("--traces", required=True, help="WORKDIR/traces/NAME, or a file of traces")
    add("--to", required=True, help="a file, or a folder for a TFDS data set")
    add("--schema", default="native", choices=conversations.SCHEMAS)
    add("--kept", action="store_true", help="without what filters left out")


def _plan_page(add: Add) -> None:
    add("path", type=Path, help="where to write the page: docs/scale.md")


def _serve(add: Add) -> None:
    from orca_jax.data.layouts import LAYOUTS, TEMPLATE

    add("--checkpoint", required=True, help="a workdir, an imported student, or a model folder")
    add("--name", default="", help="what clients call it; empty: the checkpoint's folder's name")
    add("--layout", default="", choices=["", *LAYOUTS, TEMPLATE], help="empty: the student's own")
    add("--host", default="127.0.0.1", help="any but this host's own needs a token")
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--token_variable", default="ORCA_JAX_TOKEN", help="environment variable that holds the token")
    add("--rows", type=int, default=16, help="replies generated together, at most")
    add("--max_length", type=int, default=0, help="tokens of prompt and reply together; 0: the model's own")
    add("--tensor", type=int, default=1, help="devices over which each layer is split")
    add("--grace", type=float, default=30, help="seconds that open requests have to end at shutdown")
    add("--max_body", type=int, default=2 * 2**20, help="bytes of a request")
    add("--max_prompt", type=int, default=2**31, help="tokens of a prompt")
    add("--max_output", type=int, default=2**31, help="tokens of a reply")
    add("--max_sequences", type=int, default=128, help="prompts times n of a request")
    add("--max_queue", type=int, default=256, help="sequences that may wait")
    add("--max_requests", type=int, default=256, help="requests open at a time, streams among them")


PARSERS: Mapping[str, Callable[[Add], None]] = {
    "export": _export,
    "plan_page": _plan_page,
    "serve": _serve,
}


def parser(file: str) -> argparse.ArgumentParser:
    """The parser of the program in `file`, whose docstring is the help's beginning."""
    made = argparse.ArgumentParser(
        prog=f"python -m experiments.{file}",
        description=doc(file),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    PARSERS[file](made.add_argument)
    return made


def parsed_by(program: str, arguments: Sequence[str]) -> str:
    """The file of `PARSERS` that reads these arguments of a program; empty: absl's flags do."""
    return "" if program in FLAGS else program
