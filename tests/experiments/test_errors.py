"""The mistakes that are likeliest: what a program's main says of each, where, and what to do about it.

docs/troubleshooting.md is written from these messages.
"""

import json
import re
import shutil
import socket
from typing import NamedTuple

import pytest

from orca_jax.data import tokenizer as tokenizers
from orca_jax.experiments import convert
from orca_jax.training import students
from tests import forks
from tests.data import hf_folders
from tests.hub import running

pytestmark = pytest.mark.slow
MINI = "--config={repo}/configs/mini.py:runlocal --workdir="
TRACES = "--config={repo}/configs/openorca.py:runlocal --workdir={new} --config.teachers[0].path="
API = "--config={repo}/configs/api.py --workdir={new} --config.puzzles.per_family=10"
ROWS = " --config.train.batch_rows=8"
IMPORT = "import --out={new} --model="
STUDENT = " --config.data.tokenizer= --config.student.vocab_size=0 --config.student.init="
FULL = """
def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
os.fsync = full
"""
BUSY_LEDGER = """
import fcntl
os.environ["OPENAI_API_KEY"] = "sk-0123456789"
def busy(*_):
    raise BlockingIOError
fcntl.flock = busy
"""
NO_DEVICES = """
os.environ["JAX_PLATFORMS"] = "cuda"
import jax
jax.config.update("jax_platforms", "cuda")  # as jax does when it is imported
"""
FALLEN_BACK = """
import jax
jax.devices()
jax.config.update("jax_platforms", "cuda,cpu")  # as the environment may have it: jax says nothing
"""
LITTLE_MEMORY = """
import resource
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 8 * 2**30,) * 2)
"""


class Case(NamedTuple):
    """`before` is run first, in the program's process. Of the folders, each case has copies of its own."""

    program: str
    arguments: str
    said: tuple[str, ...]
    before: str = ""
    needs: str = "json"  # a module without which the case is skipped


class Said(NamedTuple):
    """A program's status, all that it printed, and its log where it was one of several hosts."""

    status: int
    text: str
    log: str


CASES = {
    "unknown config key": Case(
        "run", MINI + "{new} --config.train.batch_row=4", ("train.batch_row'", "batch_rows")
    ),
    "misspelt variant": Case(
        "run", "--config={repo}/configs/mini.py:variant=ful --workdir={new}", ("variant=ful'", "default|full")
    ),
    "misspelt config file": Case(
        "run", "--config={repo}/configs/mimi.py --workdir={new}", ("no config file", "mimi.py")
    ),
    "wrong path of a trace file": Case(
        "run", TRACES + "gpt5.jsonl", ("No such file", "gpt5.jsonl", "Correct the path")
    ),
    "a folder as a trace file": Case("run", TRACES + "{finished}", ("Is a directory", "name the file in it")),
    "bad line in a trace file": Case(
        "run", TRACES + "{bad}", ("bad.jsonl:2: not a JSON object on one line", "column")
    ),
    "too many bad rows": Case(
        "run",
        TRACES + "{bad}",
        ("rows are malformed of 2 read", "teachers[].malformed allows", "mend the file"),
    ),
    "wrong path of a benchmark": Case("run", MINI + "{new} --config.benchmarks.bbh=/no/bbh", ("/no/bbh",)),
    "unknown system message": Case(
        "evaluate", MINI + "{finished} --system=17", ("no system message 17", "1 to 16")
    ),
    "unknown layout": Case(
        "prepare",
        MINI + "{traces} --config.data.layout=alpaca",
        ("'data.layout' must be", "'orca', 'chatml'", "got 'alpaca'"),
    ),
    "unknown attention": Case(
        "train",
        MINI + "{tokens} --config.student.attention=flash" + ROWS,
        ("'student.attention' must be 'auto'", "got 'flash'"),
    ),
    "layout that doubles the beginning of sequence": Case(
        "prepare",
        MINI + "{traces} --config.data.layout=chatml --config.data.tokenizer={smollm2}",
        ("'chatml' marks turns with '<|im_start|>'", "use 'template'"),
    ),
    "layout of other tokens": Case(
        "train",
        MINI + "{tokens} --config.data.layout=chatml" + ROWS,
        ("prepared with data.layout='orca'", "says 'chatml'"),
    ),
    "tokenizer of another size": Case(
        "prepare",
        MINI + "{traces} --config.data.tokenizer={tokenizer} --config.student.vocab_size=640",
        ("has 512 ids", "set student.vocab_size=512"),
    ),
    "tokenizer of other weights": Case(
        "prepare",
        MINI + "{traces}" + STUDENT.replace("tokenizer=", "tokenizer={other}") + "{model}",
        ("other.model gives other ids", "set data.tokenizer=''"),
    ),
    "weights of another architecture": Case(
        "train",
        MINI + "{tokens}" + STUDENT + "{misfit}" + ROWS,
        ("misfit/model.safetensors", "has shape", "as its config says", "fetch the folder again"),
    ),
    "no student": Case(
        "train",
        MINI + "{tokens}" + STUDENT + "{traces}" + ROWS,
        ("traces holds no student", "whose training is"),
    ),
    "mesh that does not divide": Case(
        "train",
        MINI + "{tokens} --config.mesh.tensor=3 --hosts=127.0.0.1:{free},1,0",
        ("tensor=3", "does not divide 8 devices"),
    ),
    "batch that does not divide": Case(
        "train",
        MINI + "{tokens}",
        ("train.batch_rows / train.accumulation = 4 rows", "8 devices", "multiple of 8"),
    ),
    "too large for the memory": Case(
        "train",
        MINI + "{tokens} --config.data.row_length=16384 --config.student.attention=reference" + ROWS,
        ("RESOURCE_EXHAUSTED: Out of memory", "docs/troubleshooting.md#memory"),
        LITTLE_MEMORY,
    ),
    "stale workdir": Case(
        "train",
        MINI + "{finished} --config.student.hidden_size=16" + ROWS,
        ("made with other settings", "student.hidden_size: 32 there, 16 now", "Use another workdir"),
    ),
    "half trained by other settings": Case(
        "train",
        MINI + "{half} --config.optimizer.clip_norm=3.5" + ROWS,
        ("was begun with other settings", "optimizer.clip_norm: 1.0 there, 3.5 now", "holds checkpoints"),
    ),
    "nothing trained yet": Case(
        "evaluate",
        MINI + "{tokens}",
        ("tokens/training has no manifest.json", "unfinished", "run what makes it"),
    ),
    "damaged checkpoint": Case(
        "evaluate", MINI + "{damaged}", ("no whole checkpoint", "step 6", "Put a copy of one there")
    ),
    "full disk": Case("run", MINI + "{new}", ("No space left", "free some space"), FULL),
    "no API key": Case(
        "collect",
        API,
        ("environment variable OPENAI_API_KEY is not set", "put the key into it"),
        "os.environ.pop('OPENAI_API_KEY', None)",
    ),
    "two keys on two lines": Case(
        "collect",
        API,
        ("OPENAI_API_KEY holds a line end inside (character 14 of 27)", "put one key, on one line"),
        "os.environ['OPENAI_API_KEY'] = 'sk-0123456789\\nsk-0123456789'",
    ),
    "certificates that are not there": Case(
        "collect",
        API,
        ("no connection can be set up", "correct SSL_CERT_FILE"),
        "os.environ |= {'OPENAI_API_KEY': 'sk-0123456789', 'SSL_CERT_FILE': '/no/file'}",
    ),
    "ledger in use": Case(
        "collect",
        API,
        ("is collecting from", "with this ledger", "run again when it has ended"),
        BUSY_LEDGER,
    ),
    "missing extra": Case(
        "serve",
        "--model={finished}",
        ("serving needs an extra: pip install -e '.[serve]'",),
        "sys.modules['fastapi'] = None",
    ),
    "busy port": Case(
        "serve",
        "--model={finished} --port={port}",
        ("Address already in use", "give another port"),
        needs="fastapi",
    ),
    "more than the model's length": Case(
        "serve",
        "--model={finished} --port=0 --max_length=99999",
        ("--max_length=99999: this model has 2048 positions", "give 1 to 2048"),
        needs="fastapi",
    ),
    "server open to others without a token": Case(
        "serve",
        "--model={finished} --host=0.0.0.0 --port=0",
        ("put a token into the environment",),
        needs="fastapi",
    ),
    "workdir in a bucket without its extra": Case(
        "run",
        MINI + "gs://bucket/run",
        ("gs://bucket/run needs an extra", "pip install -e '.[gcs]'"),
        "sys.modules['gcsfs'] = None",
    ),
    "workdir in a bucket of several hosts": Case(
        "train",
        MINI + "s3://bucket/run --hosts=127.0.0.1:1,2,1",
        ("s3://bucket/run: Orbax writes", "name a folder on a disk that all hosts share"),
    ),
    "ablation in a bucket": Case(
        "ablate",
        "--config={repo}/configs/ablations/main.py:runlocal --workdir=gs://bucket/run",
        ("--workdir=gs://bucket/run: this program links folders", "name a directory on a disk"),
    ),
    "bucket of others": Case(
        "run",
        MINI + "memory://bucket/run --scratch={new}",
        ("memory://bucket/run: PermissionError: Forbidden", "see that the bucket is there"),
        """
from fsspec.implementations.memory import MemoryFileSystem
def refuse(*_, **__):
    raise PermissionError("Forbidden")
MemoryFileSystem.find = refuse
""",
    ),
    "repository that is not there": Case("convert", IMPORT + "owner/none", ("has no such repository",)),
    "gated repository": Case("convert", IMPORT + "owner/gated", ("owner/gated, and put a token of that",)),
    "revoked token": Case(
        "convert",
        IMPORT + "owner/name",
        ("refuses the token (401)", "into HF_TOKEN"),
        "os.environ['HF_TOKEN'] = 'hf_thatwasrevoked'",
    ),
    "revision that is not there": Case(
        "convert", IMPORT + "hf://owner/name@v9", ("hf://owner/name@v9: ", "no such revision; see http")
    ),
    "wrong path in a repository": Case(
        "run",
        TRACES + "hf://datasets/owner/rows/row.jsonl",
        ("the repository has no row.jsonl, but rows.jsonl",),
    ),
    "repository of pickles": Case(
        "convert", IMPORT + "owner/pickled", ("but pytorch_model.bin", "only safetensors are read")
    ),
    "no network": Case(
        "convert",
        IMPORT + "owner/name",
        ("hub at http://127.0.0.1:1 cannot be reached", "run the same command again"),
        "os.environ['HF_ENDPOINT'] = 'http://127.0.0.1:1'",
    ),
    "hub that fails": Case("convert", IMPORT + "owner/failing", ("the hub answers 500", "again to go on")),
    "workdir that is a pattern": Case(
        "run", MINI + "{new}[1]", ("checkpoints cannot be read under a path with '['", "rename the folder")
    ),
    "workdir is a file": Case("run", MINI + "{bad}", ("bad.jsonl is a file", "name a directory")),
    "no such devices": Case(
        "train",
        MINI + "{tokens}",
        ("jax has no devices of 'cuda'", "Unset JAX_PLATFORMS, or install the extra"),
        NO_DEVICES,
    ),
    "a fall back to the CPU": Case(
        "train",
        MINI + "{tokens}",
        ("asks for cuda, and jax finds only the CPU", "JAX_PLATFORMS=cpu"),
        FALLEN_BACK,
    ),
    "a compiler option that XLA does not know": Case(
        "train",
        MINI + "{tokens} --config.compiler_options={{'xla_made_up':'1'}}" + ROWS,
        ("'compiler_options.xla_made_up': No such compile option", "set compiler_options=auto"),
    ),
    "no cluster": Case(
        "train", MINI + "{tokens} --hosts=auto", ("finds no cluster", "give ADDRESS:PORT,PROCESSES,PROCESS")
    ),
    "process 0 is not there": Case(
        "train",
        MINI + "{tokens} --hosts=127.0.0.1:1,2,1",
        ("process 0 does not listen at 127.0.0.1:1", "look at its log"),
        "from orca_jax.training import hosts; hosts.SECONDS = 0.2",
    ),
}


@pytest.fixture(scope="module")
def inputs(finished, corpus, tmp_path_factory):
    """What the cases read, by name."""
    folder = tmp_path_factory.mktemp("inputs")
    workdirs = {
        "finished": (),
        "half": ("evaluation",),
        "damaged": ("evaluation",),
        "tokens": ("training", "evaluation"),
        "traces": ("training", "evaluation", "tokens", "tokenizer"),
    }
    for name, without in workdirs.items():
        shutil.copytree(finished, folder / name, ignore=shutil.ignore_patterns(*without))
    (folder / "half/training/manifest.json").unlink()
    for file in (folder / "damaged/training/checkpoints").rglob("d/*"):
        file.write_bytes(bytes(len(file.read_bytes())))
    convert.export_student(finished, folder / "model", dtype="float32", layout="")
    shutil.copytree(folder / "model", folder / "misfit")
    config = json.loads((folder / "misfit/config.json").read_text())
    (folder / "misfit/config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    hf_folders.released(folder / "smollm2", corpus, "smollm2")
    (folder / "other.model").write_bytes(tokenizers.train(corpus, 400).model)
    (folder / "bad.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}]}\n{"messages": [}\n')
    names = {path.name.partition(".")[0]: path for path in folder.iterdir()}
    return {**names, "tokenizer": finished / "tokenizer" / tokenizers.MODEL_FILE}


def fill(hub):
    hub.failing = "api/models/owner/failing"
    for name in ("name", "gated", "failing"):
        hub.add(f"owner/{name}", {"config.json": b"{}", "model.safetensors": b""}, gated=name == "gated")
    hub.add("owner/pickled", {"pytorch_model.bin": b""})
    hub.add("datasets/owner/rows", {"rows.jsonl": b""})


@pytest.fixture(scope="module")
def said(repo, inputs, tmp_path_factory):
    """Of every case, what came of it."""
    folder = tmp_path_factory.mktemp("errors")
    with (
        running() as hub,
        pytest.MonkeyPatch.context() as patched,
        socket.create_server(("127.0.0.1", 0)) as busy,
    ):
        with socket.create_server(("127.0.0.1", 0)) as another:
            fill(hub)
            for variable, value in hub.environment(folder).items():
                patched.setenv(variable, value)
            ports = {"port": busy.getsockname()[1], "free": another.getsockname()[1]}
        cases = {}
        for number, (name, case) in enumerate(CASES.items()):
            given = {"repo": repo, "new": folder / f"{number}-new", **ports}
            for copied in ("traces", "tokens", "damaged", "half"):
                if "{" + copied + "}" in case.arguments:
                    given[copied] = shutil.copytree(inputs[copied], folder / f"{number}" / copied)
            arguments = [argument.format_map({**inputs, **given}) for argument in case.arguments.split()]
            cases[name] = (case.program, arguments, case.before)
        ended = forks.mains(cases, folder)
    logs = [folder / f"{number}/tokens/logs/host0.log" for number in range(len(CASES))]
    return {
        name: Said(*ended[name], log.read_text() if log.exists() else "") for name, log in zip(CASES, logs)
    }


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_explained(said, name):
    pytest.importorskip(CASES[name].needs)
    status, text, _ = said[name]
    assert status == 1, text
    assert "Traceback" not in text
    message = text[text.rindex("error: ") :]
    for words in CASES[name].said:
        assert words in message, text


def test_the_tokenizer_of_the_weights_may_be_named_too(inputs, mini):
    model, own = str(inputs["model"]), str(inputs["tokenizer"])
    config = mini(**{"student.init": model, "student.vocab_size": 0, "data.tokenizer": own})
    assert students.tokenizer_path(config) == own


def test_the_log_of_a_host_has_the_error_that_ended_it(said):
    ended = said["mesh that does not divide"]
    assert "INFO apprentice: examples" in ended.log
    assert ended.log.splitlines()[-1].endswith(ended.text.splitlines()[-1])
    assert [name for name, one in said.items() if one.log] == ["mesh that does not divide"]


def test_the_page_on_troubleshooting_has_these_messages_and_no_others(said, repo):
    pytest.importorskip("fastapi")
    page = (repo / "docs/troubleshooting.md").read_text()
    entries = re.findall(r"^\| `(.+?)` \|", page, re.M)
    patterns = {entry: re.compile(".*".join(map(re.escape, entry.split("…"))), re.S) for entry in entries}
    found = {
        name: [entry for entry, pattern in patterns.items() if pattern.search(ended.text)]
        for name, ended in said.items()
    }
    assert [name for name, of_case in found.items() if not of_case] == []
    assert set(entries) == {entry for of_case in found.values() for entry in of_case}
