"""Serves a student as OpenAI's API: see docs/serving.md.

python -m experiments.serve --model=runs/mini
ORCA_JAX_TOKEN=... python -m experiments.serve --model=runs/mini --host=0.0.0.0

A student is a workdir whose training is finished, an imported student, or a Hugging Face model with
safetensors, a folder or hf://OWNER/NAME of the hub; pickles are never read. The first requests of each size
wait for a program to be compiled; JAX_COMPILATION_CACHE_DIR in the environment names a folder that keeps
these programs.
"""

from __future__ import annotations

from orca_jax import cli

PROGRAM = cli.Program(
    __doc__,
    cli.MODEL,
    cli.LAYOUT,
    cli.DTYPE,
    cli.Option("name", "", "What clients call the model; empty: the name of its folder."),
    cli.Option("host", "127.0.0.1", "Any but this host's own needs a token."),
    cli.Option("port", 8000, "0: any that is free."),
    cli.Option("token_variable", "ORCA_JAX_TOKEN", "The environment variable that holds the token."),
    cli.Option("batch_size", 16, "Replies decoded together, at most.", lower_bound=1),
    cli.Option("max_length", 0, "Prompt and reply together, in tokens; 0: the model's own."),
    cli.Option("tensor", 1, "Devices over which each layer is split.", lower_bound=1),
    cli.Option("grace", 30.0, "Seconds that open requests have to end at shutdown."),
    cli.Option("max_body", 2 * 2**20, "Bytes of a request.", lower_bound=1),
    cli.Option("max_queue", 256, "Sequences that may wait.", lower_bound=1),
    cli.Option(
        "max_connections", 1024, "Open connections; more are answered with status 503.", lower_bound=1
    ),
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

import contextlib
import logging
import socket
from pathlib import Path

from orca_jax.serving.local import load_student
from orca_jax.training import students

try:
    from orca_jax.serving.server import make_app, make_server, read_token
except ModuleNotFoundError as missing:
    raise SystemExit(f"error: serving needs an extra: pip install -e '.[serve]' ({missing})") from missing

log = logging.getLogger(__name__)


def serve(given: cli.Options) -> None:
    """Serves until it is told to stop."""
    token, source = read_token(given.token_variable), students.open_source(given.model)
    positions = source.config.max_positions
    length = given.max_length or positions
    if not 0 < length <= positions:
        raise ValueError(
            f"--max_length={length}: this model has {positions} positions; give 1 to {positions}"
        )
    family = socket.AF_INET6 if ":" in given.host else socket.AF_INET
    with socket.create_server((given.host, given.port), family=family, backlog=2048) as listening:
        # A prompt of ids may lack the beginning of sequence, which is then put there.
        sizes = {"tensor": given.tensor, "batch_size": given.batch_size, "max_length": length + 1}
        student = load_student(source, given.layout, dtype=given.dtype, **sizes)
        name, port = given.name or Path(given.model).resolve().name, listening.getsockname()[1]
        app = make_app(student, name=name, token=token, queue=given.max_queue, max_body=given.max_body)
        server = make_server(
            app, host=given.host, port=port, token=token, grace=given.grace, connections=given.max_connections
        )
        log.info(
            "serving %s (%s, %s) at http://%s:%d/v1", name, student.identity, student.dtype, given.host, port
        )
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when all is shut down
            server.run(sockets=[listening])


def main() -> None:
    PROGRAM.main(serve)


if __name__ == "__main__":
    main()
