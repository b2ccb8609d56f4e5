"""Runs programs' mains in processes that are forked off one which has imported what most need."""

import atexit
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# Not huggingface_hub, nor what starts JAX's devices: both look at the environment, which is each case's own.
FORKING = """
import errno, gc, importlib.util, json, os, runpy, signal, sys
own = ["orca_jax.experiments.run", "orca_jax.experiments.convert", "orca_jax.experiments.ablate"]
others = ["fastapi", "uvicorn", "openai", "fsspec.implementations.memory", "orbax.checkpoint"]
for name in [*own, *others]:
    if importlib.util.find_spec(name.partition(".")[0]):
        importlib.import_module(name)
assert "huggingface_hub" not in sys.modules
gc.collect()
gc.freeze()  # else a process spends a second on collecting all of this as it ends


def start(code, arguments, folder, environment, said):
    if child := os.fork():
        return child
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    printed = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1), os.dup2(printed, 2)
    signal.alarm(600)
    sys.argv = arguments
    exec(code, globals())
    sys.exit()


for line in sys.stdin:
    waiting, running, ended = json.loads(line)[::-1], {}, {}
    while waiting or running:
        if waiting and len(running) < 2:
            number = len(waiting)
            running[start(*waiting.pop())] = number
        else:
            process, status = os.wait()
            ended[running.pop(process)] = os.waitstatus_to_exitcode(status)
    print(json.dumps([ended[number] for number in sorted(ended, reverse=True)]), flush=True)
"""


@functools.cache
def _forking():
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    atexit.register(process.kill)
    return process


def mains(cases, folder):
    """Runs `{name: (program, arguments, code that runs before)}` in `folder`, two at a time.

    Returns `{name: (exit status, what was printed)}`.
    """
    starts, environment = [], {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for name, (program, arguments, before) in cases.items():
        run = f"runpy.run_module('orca_jax.experiments.{program}', run_name='__main__', alter_sys=True)"
        given = [program, *map(str, arguments)]
        starts.append([f"{before}\n{run}", given, str(folder), environment, str(folder / f"{name}.txt")])
    process = _forking()
    print(json.dumps(starts), file=process.stdin, flush=True)
    statuses = json.loads(process.stdout.readline())
    return {name: (status, (folder / f"{name}.txt").read_text()) for name, status in zip(cases, statuses)}
