"""Every command and snippet of the pages: what can run in seconds runs, as it stands there but for CHANGES.

Commands of a page run in its order and in one folder, which has what the pages leave to their reader
(`given.py`). `make proof` runs them; what a page may ask for at all is checked each time.
"""

import functools
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from orca_jax import config_check
from orca_jax.config import load
from orca_jax.config_teachers import OpenAIConfig, TeacherConfig
from orca_jax.configs import mini
from tests.docs import given, pages
from tests.teachers.server import Server, completion

CHECKLIST = "release-checklist.md"
# How a command begins, to why no test runs it as it stands. What the checklist is said to have, it has.
NOT_RUN = {
    r"python -m orca_jax\.experiments$": "tests/test_new_user.py runs it",
    r"python -m pytest ": "`make test` or `make proof` runs it",
    r"TEST_PLATFORM=cuda python -m pytest ": "needs a GPU; tests/student/test_attention_kernels.py",
    r"make ": "installs what is missing; checklist: `make ",
    r"bash \.ci/run": "is the tests themselves; checklist: `bash .ci/run`",
    r"export ": "the reader's own key and names",
    r"pip install ": "changes the environment",
    r"pip-audit ": "asks PyPI; checklist: docs/security.md's commands",
    r"python requirements/licences\.py ": "changes a file here; checklist: docs/security.md's commands",
    r"(apt-get|playwright) ": "installs a browser",
    r"python docs/config_page\.py": "changes a file here; tests/docs/test_config_page.py",
    r"mkdocs ": "tests/test_docs.py builds the site",
    r"jupyter ": "trains for minutes; tests/test_notebooks.py; checklist: docs/notebooks.md's command",
    r"(docker|gcloud|kubectl|sbatch) ": "needs a platform; tests/test_launching.py has stand-ins",
    r"launch/tpu_pod.sh keep \S+ \S+$": "needs a platform; tests/test_launching.py has stand-ins",
    r"source launch/gpu_flags\.sh": "for a shell; tests/test_launching.py",
    r"python -m experiments\.train .*--hosts=": "needs several hosts; tests/proofs/test_elastic.py",
    r"lm_eval ": "needs lm-eval beside a server; tests/serving/test_server_clients.py",
    r"python -m experiments\.evaluate lm_eval ": "lm-eval fetches its tasks; checklist: `lm_eval` in an env",
    r"python -m experiments\.generate chat --model=SmolLM2": "needs weights; tests/proofs/test_smollm2.py",
    r"python -m benchmarks\.(train|generate|start|students)\b": "needs a quiet machine; checklist: benchmark",
    r"python -m benchmarks\.gpu --part": "needs a GPU; tests/benchmarks/test_gpu.py has a CPU's shapes",
    r"python -m benchmarks\.parity (families|memory)": "minutes; checklist: benchmarks.parity memory",
    r"python -m benchmarks\.scale ": "compiles for TPUs, an hour; checklist: benchmarks.scale",
}
STEPS = "--config.curriculum[0].steps=100 --config.curriculum[1].steps=100"
# What is put in the place of what: sizes, ports, and where a page's examples would meet in one workdir.
CHANGES = (
    (r"^python -m orca_jax\.experiments", "python -m experiments"),
    (r"^launch/tpu_pod\.sh keep", "python -m experiments.train"),
    (r"^launch/tpu_pod\.sh evaluate", "python -m experiments.evaluate run"),
    (r"/share/orca-13b", "runs/orca-13b"),
    (r"orca_jax\.experiments", "experiments"),
    (r"\.py:data=\S+?,init=\S+", ".py:data=gpt4_rows.jsonl,init=MODEL_FOLDER,runlocal"),
    (r"--model=HuggingFaceTB/\S+", "--model=MODEL_FOLDER"),
    (r"\.py:init=/share/llama-13b", ".py:init=llama-13b,runlocal"),
    (r"^--config\.", r"python -m experiments.prepare --config=configs/mini.py --workdir=runs/filtered \g<0>"),
    (r"--config=CONFIG --workdir=WORKDIR", "--config=configs/mini.py --workdir=runs/asked"),
    (r"--config=FILE --topology=SLICE", "--config=configs/orca_13b.py --topology=h100-8"),
    (r"(--workdir=runs/)mini (--config\.mesh)", r"\1prepared \2"),
    # A student of that size that has learnt to end its answers: another can be taught by it.
    (r"--config=configs/mini\.py --workdir=runs/mini(?= |$)", rf"\g<0> {STEPS}"),
    (r"(?<!\.plan )(--config=configs/[\w/]+\.py)(?!:)", r"\1:runlocal"),
    (r"\.plan .*", r"\g<0> --analytic"),
    (r"\.ablate .*--jobs.*", r"\g<0> --arms=progressive,answers --seeds=0"),
    (r"\.ablate .*--bbh.*", r"\g<0> --arms=answers --seeds=0"),
    (r"\.evaluate run .*agieval.*", r"\g<0> --limit=2"),
    (r"benchmarks\.encode .*", r"\g<0> --rounds=1"),
    (r"\.serve .*", r"\g<0> --port=PORT"),
    (r"127\.0\.0\.1:8000", "127.0.0.1:PORT"),
    (
        r"\.collect \w+ +--config=configs/api.*",
        r"\g<0> --config.teachers[0].api.endpoints[0].base_url=http://127.0.0.1:PORT/v1"
        r" --config.teachers[1].api.endpoints[0].base_url=http://127.0.0.1:PORT/v1",
    ),
)
EIGHT_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "32"}
NEEDED = {  # modules
    r"\.serve ": "fastapi",
    r"\.collect ": "openai",
    r"--form=gguf": "gguf",
}
# Files that there must be (patterns, in which \1 is of the command's), and words that must be printed.
MADE = {
    r"--(?:out|to|output)[= ](\S+)": (r"\1",),
    r"\.run .*--workdir=(\S+)": (r"\1/table.md", r"\1/experiment.json", r"\1/training/manifest.json"),
    r"\.ablate .*--workdir=(\S+)": (r"\1/table.md", r"\1/results.json", r"\1/*/seed-0/table.md"),
    r"\.collect plan .*--workdir=(\S+)": (r"\1/plan/chatgpt.jsonl", r"\1/plan/gpt4.jsonl"),
    r"\.collect (?:run +)?--config\S+ +--workdir=(\S+)": (r"\1/traces/*/traces.jsonl",),
    r"\.collect export --workdir.*--out=(\S+)": (r"\1/*.parquet",),
    r"\.prepare .*--workdir=(\S+)": (r"\1/tokens/*/manifest.json", r"\1/cards/*/README.md"),
    r"\.train .*--workdir=(\S+)": (r"\1/training/metrics.jsonl", r"\1/training/checkpoints/*"),
    r"\.evaluate (?:run )?--config.*--workdir=(\S+)": (r"\1/evaluation/**/scores.json",),
    r"\.evaluate .*--workdir=(\S+) .*modes\.agieval": (r"\1/evaluation/*/agieval-orca_cot/scores.json",),
    r"\.evaluate score .*--out=(\S+)": (r"\1/scores.json",),
    r"\.evaluate judge .*--out=(\S+)": (r"\1/reviews.jsonl", r"\1/ledger.sqlite"),
    r"\.tables .*--workdir=(\S+)": (r"\1/table.md",),
    r"\.tables paper .*--out=(\S+)": (r"\1/README.md", r"\1/*.tex", r"\1/*.csv", r"\1/*.svg"),
    r"\.report --workdir=(runs/mini)$": (r"\1/report.html",),
    r"convert export .*--out=(\S+) --form=gguf": (r"\1/model.gguf",),
    r"convert export (?!.*--form=gguf).*--out=(\S+)": (
        r"\1/*.safetensors",
        r"\1/generation_config.json",
        r"\1/tokenizer.json",
    ),
    r"convert adapter .*--out=(\S+)": (r"\1/adapter_config.json",),
    r"convert import .*--out=(\S+)": (r"\1/checkpoints/*",),
    r"^echo .* > (\S+)": (r"\1",),
}
SAID = {
    r"\.collect plan": "10 queries, 10 of them chatgpt's too",
    r"\.collect estimate": r"USD in batches(.|\n)*spent so far",
    r"\.collect status": "done 40 of 40",
    r"\.collect retry": "0 requests ended in an error",
    r"\.inspect .*--row=0": r"### Human:|segment",
    r"\.inspect .*--tokens": r"position +segment +input +target +weight",
    r"\.inspect .*--system=8": "system message 8",
    r"\.inspect .*--flag=disagrees": "flags disagrees",
    r"\.inspect .*--find": "turn",
    r"benchmarks\.encode": "times sentencepiece",
    r"benchmarks\.gpu": "tokens",
    r"benchmarks\.load": r"\| bfloat16 +\|",
    r"\.plan ": "a chip needs",
    r"\.evaluate edits": r"asked 100, right \d+, followed \d+",
    r"\.ablate plan": r"Holm over 4(.|\n)*hours",
    r"\.evaluate compare": r"p \(McNemar\)",
    r"\.evaluate show": "-- target|questions of 1 tasks",
    r"\.evaluate score --benchmark=bbh": r"snarks +\| +4 \| +100\.0",
    r"\.evaluate judge|--benchmark=judged": "candidate over reference",
    r"\.tables .*--workdir": "Mean of 4",
    r"\.generate chat": r"> .+\n",
    r"\.serve ": "serving \\w+ .* at http://127",
    r"^curl ": '"chat.completion"',
}
COMMANDS = [command for page in pages.PAGES for command in pages.commands(page)]
SNIPPETS = [snippet for page in pages.PAGES for snippet in pages.snippets(page)]


def reason(text):
    """Why no test runs a command; empty: one does."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, text)), "")


def runnable():
    """The commands that are run, each where it first stands; the checklist's are a person's."""
    first = {}
    for command in COMMANDS:
        if command.page != CHECKLIST and not reason(command.text):
            first.setdefault(command.text, command)
    return list(first.values())


RUN = runnable()
FIRST = next(one for one in RUN if re.search(r"\.run \S+/mini\.py --workdir=runs/mini$", one.text))


def changed(text, port):
    for pattern, replacement in CHANGES:
        text = re.sub(pattern, replacement, text)
    return text.replace("PORT", str(port))


def missing(text):
    """What a command needs and is not here."""
    modules = (module for pattern, module in NEEDED.items() if re.search(pattern, text))
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    if "../shared/data" in text and not (pages.REPOSITORY / "../shared/data").is_dir():
        absent.append("../shared/data")
    return ", ".join(absent)


# What the pages may ask for


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS if one.page != CHECKLIST], ids=lambda command: command.place
)
def test_a_command_is_run_or_there_is_a_reason(command):
    starts = ("python -m experiments.", "python -m benchmarks.", "curl ", "echo ")
    assert reason(command.text) or changed(command.text, 0).startswith(starts), (
        f"docs say {command.text!r}: let CHANGES make it run, or say in NOT_RUN why it is not"
    )


def test_reasons_are_of_commands_that_are_there_and_name_what_is_there():
    checklist = (pages.REPOSITORY / "docs" / CHECKLIST).read_text()
    for pattern, why in NOT_RUN.items():
        assert any(re.match(pattern, command.text) for command in COMMANDS), pattern
        for path in re.findall(r"(?:tests|docs)/[\w/-]+\.(?:py|md)", why):
            assert (pages.REPOSITORY / path).exists(), why
        _, _, listed = why.partition("checklist: ")
        assert listed in checklist, why


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS if "-m pytest" in one.text], ids=lambda command: command.place
)
def test_a_command_of_pytest_has_tests(command):
    path, chosen = re.search(r"(tests/\S+)(?: -k (\w+))?", command.text).groups()
    named = re.findall(r"^def (test_\w+)", (pages.REPOSITORY / path).read_text(), re.M)
    assert [name for name in named if (chosen or "") in name], command.text


@pytest.mark.parametrize(
    "command", [one for one in COMMANDS if one.text.startswith("make ")], ids=lambda command: command.place
)
def test_make_knows_what_it_is_asked(command):
    asked = [*shlex.split(command.text), "--dry-run", "--always-make"]
    said = subprocess.run(asked, cwd=pages.REPOSITORY, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    for name, value in re.findall(r"(CONFIG|WORKDIR)=(\S+)", command.text):
        assert f"--{name.lower()}={value}" in said.stdout


def test_extras_that_pip_is_asked_for_exist():
    known = re.findall(r'^    "([\w-]+)": \[', (pages.REPOSITORY / "setup.py").read_text(), re.M)
    text = "".join(page.read_text() for page in pages.PAGES)
    asked = re.findall(r"pip install (?:-e )?'\.\[([\w,-]+)\]'", text)
    assert {name for names in asked for name in names.split(",")} <= set(known)


@pytest.mark.parametrize("command", RUN, ids=lambda command: command.place)
def test_what_a_command_is_to_do_is_known(command):
    assert any(re.search(pattern, changed(command.text, 0)) for pattern in (*MADE, *SAID)), command.text


# Snippets


@pytest.fixture(scope="module")
def snippet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snippets")
    given.benchmarks(folder)
    given.flan(folder)
    given.traces(folder)
    return folder


TRAINS = pytest.param("python.md", marks=pytest.mark.proof)


@pytest.mark.parametrize("page", [TRAINS, *sorted({one.page for one in SNIPPETS} - {"python.md"})])
def test_the_snippets_of_a_page_run(page, snippet_folder, monkeypatch):
    monkeypatch.chdir(snippet_folder)
    config = mini.get_config("runlocal")
    sources = {"cot": ["flan_cot/part.jsonl"], "t0": ["t0/letters.jsonl"]}
    names = {"config": config, "sources": sources, "listed": []}
    for snippet in (one for one in SNIPPETS if one.page == page):
        if snippet.language == "json":
            config_check.build(OpenAIConfig, json.loads(snippet.text))
        elif snippet.text.startswith("dict("):
            config_check.build(TeacherConfig, eval(snippet.text))
        else:
            exec(snippet.text, names)
    load(config)
    if "kept" in names:  # in data.md
        assert names["kept"]
        assert Path("traces.jsonl").read_text().count("\n") == 120


# Commands


class Ran(NamedTuple):
    """The folder of a page, and of each command that was run its status and what it printed."""

    folder: Path
    said: dict[str, tuple[int, str]]


@pytest.fixture(scope="module")
def teacher():
    """An endpoint that answers anything; a judge would have said so too."""
    with Server(lambda call: completion("9 8\nThe first says more.")) as server:
        yield server


@pytest.fixture(scope="module")
def ran(teacher, tmp_path_factory):
    """`ran(page)`: what came of the page's commands, once."""
    done = {}

    def folder_of(name):
        folder = tmp_path_factory.mktemp(name.partition(".")[0]) / "clone"
        folder.mkdir()
        (folder.parent / "shared").symlink_to(pages.REPOSITORY / "../shared")
        return folder

    @functools.cache
    def template():
        base, folder = folder_of("base"), folder_of("given")
        status, text = run_all([FIRST], base, teacher.port)[FIRST.place]
        assert status == 0, text
        given.write(folder, base / "runs/mini", teacher.url)
        return folder

    def run(page):
        if page not in done:
            folder = folder_of(page)
            shutil.copytree(template(), folder, dirs_exist_ok=True)
            chosen = [one for one in RUN if one.page == page and not missing(one.text)]
            for name in provenance(chosen):
                shutil.rmtree(folder / "runs" / name, ignore_errors=True)
            done[page] = Ran(folder, run_all(chosen, folder, teacher.port))
        return done[page]

    return run


def provenance(chosen):
    """The runs that commands make themselves; configs/mini.py's goes on."""
    asked = "\n".join(one.text for one in chosen)
    return set(re.findall(r"\.(?:run|ablate) .*--workdir=runs/(\S+)", asked)) - {"mini"}


def run_all(chosen, folder, port):
    """Runs commands of a page in `folder`; gives the status and what was printed of each, by its place."""
    serves = any(".serve " in one.text for one in chosen)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1] if serves else port
    out = folder.parent / "said"
    out.mkdir()
    asked = [
        {
            "text": changed(command.text, port),
            "out": str(out / command.place),
            "typed": "What is 1?\n/quit\n" if ".generate chat" in command.text else "",
            "environment": EIGHT_DEVICES if "mesh.fsdp=4" in command.text else {},
            "port": port if ".serve " in command.text else 0,
        }
        for command in chosen
    ]
    environment = {**os.environ, "PYTHONPATH": str(pages.REPOSITORY), "XLA_FLAGS": ""}
    ended = subprocess.run(
        [sys.executable, pages.REPOSITORY / "tests/docs/run_page.py"],
        input="".join(json.dumps(one) + "\n" for one in asked),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr
    said = {}
    for line in ended.stdout.splitlines():
        path, status = json.loads(line)
        said[Path(path).name] = (status, Path(path).read_text())
    return said


@pytest.mark.proof
@pytest.mark.parametrize("command", RUN, ids=lambda command: command.place)
def test_a_command_does_what_its_page_says(command, ran):
    if absent := missing(command.text):
        pytest.skip(f"needs {absent}")
    folder, said = ran(command.page)
    status, text = said[command.place]
    assert status == 0, text
    for pattern, files in MADE.items():
        if found := re.search(pattern, changed(command.text, 0)):
            for file in files:
                assert list(folder.glob(found.expand(file))), f"no {found.expand(file)}: {text}"
    for pattern, words in SAID.items():
        if re.search(pattern, command.text):
            assert re.search(words, text), text
