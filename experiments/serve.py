"""Serves a student as OpenAI's API: see docs/serving.md.

python -m experiments.serve --checkpoint=runs/mini
ORCA_JAX_TOKEN=... python -m experiments.serve --checkpoint=runs/mini --host=0.0.0.0

A checkpoint is a workdir whose training is finished, an imported student, or a Hugging Face model folder with
safetensors; pickles are never read. The first requests of each size wait for a program to be compiled;
JAX_COMPILATION_CACHE_DIR in the environment names a folder that keeps these programs.
"""

from __future__ import annotations

from orca_jax.experiments import launch

if __name__ == "__main__":
    launch.start("serve")  # before the imports below, which take seconds

import argparse
import contextlib
import functools
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from orca_jax.data.layouts import LayoutError
from orca_jax.experiments import options
from orca_jax.serving.local import load_student
from orca_jax.training import students

try:
    from orca_jax.serving.guard import Limits
    from orca_jax.serving.server import make_app, make_server
except ModuleNotFoundError as missing:
    raise SystemExit(f"error: serving needs an extra: pip install -e '.[serve]' ({missing})") from missing

log = logging.getLogger(__name__)
SHORTEST_TOKEN = 16


parser = functools.partial(options.parser, "serve")


def token(variable: str) -> str:
    """The token in the environment; empty where there is none.

    Raises:
      ValueError: it is too short to be a secret, or has characters that no header can have.
    """
    found = os.environ.get(variable, "").strip()
    if found and (len(found) < SHORTEST_TOKEN or not found.isascii()):
        raise ValueError(f"the token in {variable} must have {SHORTEST_TOKEN} ASCII characters at least")
    return found


def limits(options: argparse.Namespace) -> Limits:
    return Limits(
        body_bytes=options.max_body,
        prompt_tokens=options.max_prompt,
        output_tokens=options.max_output,
        sequences=options.max_sequences,
        queue=options.max_queue,
        requests=options.max_requests,
    )


def serve(options: argparse.Namespace) -> None:
    """Serves until it is told to stop.

    Raises:
      ValueError: a token is needed or cannot be one, a limit cannot be, or the model is not made for so many
        positions.
      ArtifactError, LayoutError, UnsupportedModelError: there is no student that could be served.
      OSError: the address cannot be listened on.
    """
    secret, allowed = token(options.token_variable), limits(options)
    source = students.open_source(options.checkpoint)
    if not (options.layout or source.own_layout):
        raise LayoutError(f"{options.checkpoint} does not say its prompt layout; give --layout")
    positions = source.config.max_positions
    max_length = options.max_length or positions
    if not 0 < max_length <= positions:
        raise ValueError(
            f"--max_length={max_length}: this model has {positions} positions; give 1 to {positions}"
        )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.create_server((options.host, options.port), family=family, backlog=2048) as listening:
        student = load_student(
            source,
            options.layout,
            tensor=options.tensor,
            batch_size=options.rows,
            # A prompt of ids may lack the beginning of sequence, which is then put there.
            max_length=max_length + 1,
        )
        name = options.name or Path(options.checkpoint).resolve().name
        app = make_app(student, name=name, token=secret, limits=allowed)
        port = listening.getsockname()[1]
        server = make_server(app, host=options.host, port=port, token=secret, grace=options.grace)
        log.info("serving %s (%s) at http://%s:%d/v1", name, student.identity, options.host, port)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when all is shut down
            server.run(sockets=[listening])


def main(arguments: Sequence[str]) -> None:
    options = parser().parse_args(arguments)
    launch.set_up_logging()
    launch.checked(lambda: serve(options))


if __name__ == "__main__":
    main(sys.argv[1:])
