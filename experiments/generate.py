"""Talks with a student, or answers a file of questions.

python -m experiments.generate chat --model=runs/mini --system=7
python -m experiments.generate batch --model=runs/mini --input=questions.jsonl --out=replies.jsonl

A student is a workdir whose training is finished, an imported student, or a Hugging Face model folder.
`chat` streams replies and keeps the history; `/help` lists its commands. `batch` reads JSON lines with `id`
and either `messages` [{role, content}] or `question` (and `system_prompt`), and appends each reply as it is
finished; run again, it continues.
"""

from __future__ import annotations

from orca_jax import cli

OPTIONS = (
    cli.MODEL,
    cli.LAYOUT,
    cli.Option("system", "", "The system message: an id of the 16, or a text; empty: none."),
    cli.Option("temperature", 0.0, "0 is greedy.", lower_bound=0),
    cli.Option("top_p", 1.0, "Nucleus sampling; 1: off.", lower_bound=0, upper_bound=1),
    cli.Option("top_k", 0, "Sampling from the likeliest ids; 0: off.", lower_bound=0),
    cli.Option("max_tokens", 256, "Of a reply.", lower_bound=1),
    cli.Option("max_length", 2048, "Prompt and reply together, in tokens.", lower_bound=2),
    cli.Option("stop", (), "A text that ends a reply; may be given more than once."),
    cli.Option("seed", 0, "Of sampled replies."),
    cli.Option("tensor", 1, "Devices over which each layer is split.", lower_bound=1),
)
PROGRAM = cli.Program(
    __doc__,
    commands={
        "chat": cli.Command("A conversation in the terminal.", *OPTIONS),
        "batch": cli.Command(
            "Answers a file of questions.",
            cli.Option("input", "", "JSON lines of questions.", required=True),
            cli.Option("out", "", "The file to write: JSON lines of replies.", required=True),
            *OPTIONS,
            cli.Option("batch_size", 32, "Replies decoded together, at most.", lower_bound=1),
        ),
    },
)
if __name__ == "__main__":
    PROGRAM.start()  # before the imports below, which take seconds

from collections.abc import Iterator
from pathlib import Path

from orca_jax.queries import system_messages
from orca_jax.records import Sampling
from orca_jax.serving.batch import answer_file
from orca_jax.serving.chat import HELP, Chat, converse
from orca_jax.serving.local import LocalStudent, load_student
from orca_jax.training import students


def student_of(given: cli.Options, batch_size: int = 1) -> LocalStudent:
    source = students.open_source(given.model)
    sizes = {"tensor": given.tensor, "batch_size": batch_size, "max_length": given.max_length}
    return load_student(source, given.layout, **sizes)


def system_of(given: cli.Options) -> str:
    """The text of the system message; empty: none."""
    return system_messages.get(int(given.system)).text if given.system.isdigit() else given.system


def sampling_of(given: cli.Options) -> Sampling:
    return Sampling(given.temperature, given.top_p, given.max_tokens, tuple(given.stop), seed=given.seed)


def typed() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            return


def chat(given: cli.Options) -> None:
    student, system = student_of(given), system_of(given)
    print(f"{HELP}\n[system message: {system or 'none'}]")
    talk = Chat(student, sampling_of(given), system=system, top_k=given.top_k)
    converse(talk, typed(), lambda text: print(text, end="", flush=True))


def batch(given: cli.Options) -> None:
    settings = {"system": system_of(given), "top_k": given.top_k}
    student, sampling = student_of(given, given.batch_size), sampling_of(given)
    answer_file(student, Path(given.input), Path(given.out), sampling, **settings)


def main() -> None:
    PROGRAM.main(chat=chat, batch=batch)


if __name__ == "__main__":
    main()
