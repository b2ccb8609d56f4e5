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

ORDERS = ("reference_first", "candidate_first")


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


def _train() -> None:
    """How a run is watched and where, which changes no number: flags, and no keys of the config."""
    flags.DEFINE_string(
        "hosts", "", "Several hosts: 'auto' (TPU pod, Slurm, GKE), or ADDRESS:PORT,PROCESSES,PROCESS."
    )
    flags.DEFINE_float("peak_tflops", 0.0, "Of one device, for the metric mfu; 0: of chips.csv.")
    flags.DEFINE_string("profile_steps", "", "FIRST:LAST, to trace for TensorBoard's profiler.")


def _evaluate() -> None:
    flags.DEFINE_string(
        "model", "", "Another model: a student's folder, or a JSON file with an endpoint's settings."
    )
    flags.DEFINE_string("system", "", "The system message, by id or in words.")
    flags.DEFINE_integer("samples", 1, "Replies to each question.", lower_bound=1)
    flags.DEFINE_integer("limit", 0, "Questions of each task; 0: all.", lower_bound=0)
    flags.DEFINE_string("second_model", "", "Who replies in AGIEval's second stage: a JSON file.")
    flags.DEFINE_string("toxicity_classifier", "", "A folder with a toxicity classifier.")


def _ablate() -> None:
    flags.DEFINE_list("arms", None, "Only these arms.")
    flags.DEFINE_list("seeds", None, "Only these seeds.")
    flags.DEFINE_string("bbh", "", "A folder of Big-Bench Hard: students sit the files of their families.")
    flags.DEFINE_list(
        "reuse", [], "Workdirs of other sets, whose finished runs of the same config are taken."
    )
    flags.DEFINE_integer("jobs", 1, "Arms that run at once, each on its part of the cores.", lower_bound=1)


ROAD = (_config, _workdir)
FLAGS: Mapping[str, tuple[Callable[[], None], ...]] = {
    "run": (*ROAD, _prepare, _train),
    "collect": (*ROAD, _collect),
    "prepare": (*ROAD, _prepare),
    "train": (*ROAD, _train),
    "evaluate": (*ROAD, _evaluate),
    "tables": ROAD,
    "ablate": (*ROAD, _ablate, _prepare, _train),
}


# What may stand before the flags.
WORDS: Mapping[str, tuple[str, ...]] = {
    "collect": ("run", "plan", "estimate", "retry", "status", "export"),
    "evaluate": ("run", "compare", "judge", "lm_eval", "score", "show"),
}
WITHOUT_CONFIG = (("collect", "status"), ("collect", "export"))


def required(program: str, word: str) -> tuple[str, ...]:
    """The flags that a program needs."""
    if (program, word) in WITHOUT_CONFIG:
        return ("workdir",)
    of_groups = {
        _config: ("config",),
        _workdir: ("workdir",),
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


def _report(add: Add) -> None:
    add("workdir", type=Path, help="of experiments.run or experiments.ablate")
    add("--out", type=Path, help="the file to write; by default WORKDIR/report.html")


def _paper(add: Add) -> None:
    add("--paper", choices=("orca",), required=True)
    add("--out", type=Path, required=True, help="the folder that gets them")
    add("--runs", default="", help="workdirs or sets of arms, with commas between")


def _compare(add: Add) -> None:
    add("first", type=Path)
    add("second", type=Path)
    add("--names", nargs=2, default=("first", "second"))


def _score(add: Add) -> None:
    from orca_jax.evaluation import modes

    add("--benchmark", required=True, help="judged, puzzles or a benchmark of docs/evaluation.md")
    add("--mode", default="", help=", ".join(modes.MODES))
    add("--replies", required=True, type=Path)
    add("--out", required=True, type=Path)
    add("--path", default="", help="the benchmark's folder or file, if it is at hand")
    add("--rows", type=int, help="that a part of a benchmark's file has")


def _show(add: Add) -> None:
    add("--benchmark", required=True, help="one of docs/evaluation.md")
    add("--path", required=True, help="its folder or file")
    add("--mode", default="", help="all of them if empty")
    add("--task", default="")
    add("--rows", type=int, help="that a part of a benchmark's file has")


def _judge(add: Add) -> None:
    from orca_jax.evaluation.benchmarks import open_ended

    add("--benchmark", required=True, choices=tuple(open_ended.SOURCES))
    add("--path", required=True, help="the benchmark's file")
    add("--judge", required=True, help="a JSON file with an endpoint's settings")
    add("--reference", required=True, type=Path)
    add("--candidate", required=True, type=Path)
    add("--out", required=True, type=Path)
    add("--forms", default="", help="prompts in FastChat's prompt.jsonl format")
    add("--orders", nargs="+", choices=ORDERS, default=ORDERS)


def _lm_eval(add: Add) -> None:
    add("--student", required=True)
    add("--tasks", required=True, nargs="+")
    add("--out", required=True, type=Path)
    add("--include_path", help="a folder with tasks of your own")
    add("--apply_chat_template", action="store_true", help="descriptions as system messages")
    add("--limit", type=int, help="questions of each task")
    add("--batch_size", type=int, default=32)
    add("--max_length", type=int, default=2048)
    add("--prompt_layout", default="", help="empty: the student's own")


PARSERS: Mapping[str, Callable[[Add], None]] = {
    "compare": _compare,
    "evaluate_judge": _judge,
    "evaluate_lm_eval": _lm_eval,
    "evaluate_score": _score,
    "evaluate_show": _show,
    "export": _export,
    "report": _report,
    "tables": _paper,
}
EVALUATE = {
    "compare": "compare",
    **{word: f"evaluate_{word}" for word in ("judge", "lm_eval", "score", "show")},
}


def parser(file: str) -> argparse.ArgumentParser:
    """The parser of the program in `file`, whose docstring is the help's beginning."""
    word = next((word for word, name in EVALUATE.items() if name == file), "")
    made = argparse.ArgumentParser(
        prog=f"python -m experiments.evaluate {word}" if word else f"python -m experiments.{file}",
        description=doc(file),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    PARSERS[file](made.add_argument)
    return made


def parsed_by(program: str, arguments: Sequence[str]) -> str:
    """The file of `PARSERS` that reads these arguments of a program; empty: absl's flags do."""
    if program == "evaluate":
        return EVALUATE.get(arguments[0], "") if arguments else ""
    if program == "tables":
        given = {argument.partition("=")[0] for argument in arguments}
        return "tables" if given & {"--paper", "--runs", "--out"} else ""
    return "" if program in FLAGS else program
