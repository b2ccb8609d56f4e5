"""Runs the commands of one page one after the other; their settings come as JSON lines, statuses go out.

What every program imports is imported once; each program is then a process of its own, that runs a main.
"""

import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time

import matplotlib.figure  # noqa: F401
import scipy.stats  # noqa: F401

import orca_jax.cli
import orca_jax.reporting.tables
import orca_jax.serving.local
import orca_jax.training.trainer  # noqa: F401

PATIENCE = 900  # seconds for one command


def start(command: dict) -> int:
    """The process of a command, whose output goes to a file."""
    child = os.fork()
    if child:
        return child
    said = os.open(command["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    with tempfile.TemporaryFile() as typed:
        typed.write(command["typed"].encode())
        typed.seek(0)
        os.dup2(typed.fileno(), 0)
    sys.stdin = open(0)  # noqa: SIM115
    os.environ.update(command["environment"])
    signal.alarm(PATIENCE)
    words = shlex.split(command["text"])
    if words[:2] == ["python", "-m"]:
        sys.argv = words[2:]
        runpy.run_module(words[2], run_name="__main__", alter_sys=True)
        sys.exit()
    sys.exit(subprocess.run(["bash", "-ec", command["text"]]).returncode)


def status(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def listens(port: int, process: int) -> bool:
    """Whether a server that was started is up before it ended, or a while has passed."""
    for _ in range(PATIENCE):
        if os.waitpid(process, os.WNOHANG) != (0, 0):
            return False
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(1)
    return False


def main() -> None:
    """A command with a `port` is a server: it runs until the page is through, and its status is then said."""
    servers = {}
    for command in [json.loads(line) for line in sys.stdin]:
        process = start(command)
        if command["port"] and listens(command["port"], process):
            servers[command["out"]] = process
        else:
            print(json.dumps([command["out"], 1 if command["port"] else status(process)]), flush=True)
    for out, process in servers.items():
        os.kill(process, signal.SIGTERM)
        ended = status(process)
        print(json.dumps([out, 0 if ended == -signal.SIGTERM else ended]), flush=True)


if __name__ == "__main__":
    main()
