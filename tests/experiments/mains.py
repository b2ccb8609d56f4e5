"""Runs programs' mains by the dozen: what most import is imported once, and each is forked off it."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FORKING = """
import errno, importlib.util, json, os, runpy, signal, sys
OWN = ("experiments.run", "experiments.convert", "experiments.ablate", "teachers.batch")
OTHERS = ("fastapi", "uvicorn", "huggingface_hub.hf_api", "fsspec.implementations.memory", "orbax.checkpoint")
found = [name for name in OTHERS if importlib.util.find_spec(name.partition(".")[0])]
for name in [*(f"orca_jax.{name}" for name in OWN), *found]:
    importlib.import_module(name)

cases, folder = json.load(sys.stdin), sys.argv[1]
running = {}


def collect(most):
    while len(running) > most:
        process, status = os.wait()
        print(json.dumps([running.pop(process), os.waitstatus_to_exitcode(status)]), flush=True)


for name, (program, arguments, before) in cases.items():
    collect(most=1)
    child = os.fork()
    if not child:
        said = os.open(f"{folder}/{name}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1), os.dup2(said, 2)
        signal.alarm(600)
        exec(before)
        sys.argv = [program, *arguments]
        runpy.run_module(f"orca_jax.experiments.{program}", run_name="__main__", alter_sys=True)
        sys.exit()
    running[child] = name
collect(most=0)
"""


def run(cases, folder):
    """Runs `{name: (program, arguments, code that runs before)}` in `folder`.

    Returns `{name: (exit status, what was printed)}`.
    """
    done = subprocess.run(
        [sys.executable, "-c", FORKING, folder],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    statuses = dict(map(json.loads, done.stdout.splitlines()))
    return {name: (statuses[name], (folder / f"{name}.txt").read_text()) for name in cases}
