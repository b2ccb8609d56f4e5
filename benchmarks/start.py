"""From a command to the third answer of a chat, beside transformers: a first start, and a second one.

python -m benchmarks.start exported     # a student's folder that transformers reads too

Whole processes in turns, greedy, float32, the same three questions of one conversation. A first start of
ours finds no compiled programs, a second one those of the first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import racing
from orca_jax.reporting.tables import markdown

QUESTIONS = ("What is the capital of France?", "Why is the sky blue?", "Name three colours.")
MOST = 64  # tokens of an answer
# The arguments are the folder, MOST, and a question each.
THEIRS = """
import sys
import torch
import transformers

folder, most, *questions = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
messages = []
for question in questions:
    messages.append({"role": "user", "content": question})
    given = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**given, max_new_tokens=int(most), do_sample=False)
    text = tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    print(">", text, flush=True)
    messages.append({"role": "assistant", "content": text})
"""


def ours(folder: str, cache: str) -> tuple[float, str]:
    program = ["-m", "experiments.generate", "chat", f"--model={folder}", f"--max_tokens={MOST}"]
    return timed(program, cache, "\n".join(QUESTIONS) + "\n")


def theirs(folder: str, cache: str) -> tuple[float, str]:
    return timed(["-c", THEIRS, folder, str(MOST), *QUESTIONS], cache, "")


def timed(program: list[str], cache: str, typed: str) -> tuple[float, str]:
    """Seconds of a process, and what it printed."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "TOKENIZERS_PARALLELISM": "true"}
    started = time.perf_counter()
    command = [sys.executable, *program]
    ran = subprocess.run(command, input=typed, env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"error: {' '.join(program[:3])} ended with {ran.returncode}: {ran.stderr[-2000:]}")
    return time.perf_counter() - started, ran.stdout


def answers(printed: str) -> list[str]:
    """The first words of each answer, which roundings do not change."""
    return [part.strip()[:20] for part in printed.split("> ")[1:] if part.strip()]


def main(folder: str, rounds: int = 3) -> None:
    times: list[list[float]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            runs = [ours(folder, cache), ours(folder, cache), theirs(folder, cache)]
        said = [answers(printed) for _, printed in runs]
        if not said[0] == said[1] == said[2]:
            raise SystemExit(f"error: the answers differ: {said}")
        times.append([seconds for seconds, _ in runs])
    seconds = np.array(times)
    ratios = seconds / seconds[:, -1:]
    rows = [
        [name, *(f"{np.median(v):.{n}f} ({v.min():.{n}f}-{v.max():.{n}f})" for v, n in ((s, 1), (r, 2)))]
        for name, s, r in zip(("first start", "second start", "transformers"), seconds.T, ratios.T)
    ]
    title = f"{Path(folder).name}, {len(QUESTIONS)} answers"
    print(markdown([title, "seconds (range)", "times transformers'"], rows))


if __name__ == "__main__":
    racing.command(main)
