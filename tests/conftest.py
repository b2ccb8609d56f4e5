"""What all tests share: the CPU as eight devices, a cache of compiled programs, and which tests run."""

import gc
import importlib.util
import logging
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
DEVICES = "--xla_force_host_platform_device_count=8"
# Eight devices share few cores: on a busy machine one may wait long for the others, and is not stuck.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=900"
# Most of the suite's time is compiling: a step compiles in a quarter of the time without MLIR's emitters of
# fusions. The proofs compile as users do.
QUICKLY = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"

# Before jax is first imported; by environment, so that the processes which tests start have them too.
# `TEST_PLATFORM=cuda` is for the tests of kernels in tests/student/test_attention.py.
os.environ["JAX_PLATFORMS"] = os.environ.get("TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES} {PATIENCE}".strip()
# Threads of XLA's pool. A device that waits for the others in a collective keeps its thread; with no more
# threads than devices, what the others wait for may find none, and now and then all wait for ever.
os.environ.setdefault("NPROC", "32")
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(REPOSITORY / ".cache/jax-tests")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# The suite's modules and compiled programs are millions of objects that stay: looking for garbage among them
# at Python's usual rate costs 7 % of the time.
gc.set_threshold(200_000, 50, 1000)

# Programs started in the background of a script ignore SIGINT, and so would all that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("local", deadline=None, max_examples=30)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser):
    parser.addoption("--proof", action="store_true", help="run the long tests marked `proof` too")
    parser.addoption(
        "--note-skipped", metavar="FILE", help="write the tests skipped for want of an extra there"
    )
    parser.addoption(
        "--only-noted", metavar="FILE", help="run the tests that --note-skipped has written there"
    )
    parser.addoption("--regenerate-golden", action="store_true", help="write tests/golden/ anew")


def pytest_configure(config):
    if not config.getoption("--proof"):
        os.environ["XLA_FLAGS"] += f" {QUICKLY}"


def pytest_sessionstart(session):
    session.config.skipped_for_extras = set()
    session.config.pluginmanager.register(Skipped(session.config.skipped_for_extras))


class Skipped:
    """Notes tests, and files as a whole, that are skipped since an extra is not installed."""

    def __init__(self, noted):
        self.noted = noted

    def note(self, report):
        if report.skipped and re.search("could not import|the extra", str(report.longrepr)):
            self.noted.add(report.nodeid)

    pytest_collectreport = pytest_runtest_logreport = note


def pytest_sessionfinish(session):
    path = session.config.getoption("--note-skipped")
    if path and not hasattr(session.config, "workerinput"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("".join(f"{name}\n" for name in sorted(session.config.skipped_for_extras)))


def pytest_collection_modifyitems(config, items):
    if path := config.getoption("--only-noted"):
        noted = set(Path(path).read_text().splitlines())
        chosen = [item for item in items if noted & {item.nodeid, item.nodeid.partition("::")[0]}]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    for item in items:
        if item.get_closest_marker("proof") and not config.getoption("--proof"):
            item.add_marker(pytest.mark.skip(reason="a long one: give --proof to run it"))
        if item.get_closest_marker("parity") and missing:
            item.add_marker(
                pytest.mark.skip(reason=f"needs {', '.join(missing)}: install the extra `parity`")
            )


@pytest.fixture(autouse=True)
def no_handlers_left():
    """A program's main that a test calls logs to the standard error of that test, which is closed then."""
    before = logging.root.handlers[:]
    yield
    for handler in set(logging.root.handlers) - set(before):
        if not type(handler).__module__.startswith("_pytest"):
            logging.root.removeHandler(handler)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data files beside the repository."""
    folder = REPOSITORY / "../shared/data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


@pytest.fixture(scope="session")
def regenerate_golden(request) -> bool:
    """Whether golden files are to be written instead of compared."""
    return request.config.getoption("--regenerate-golden")


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Sentences of made-up facts, enough to train a small tokenizer on."""
    random = np.random.default_rng(0)
    nouns, verbs = ["cat", "dog", "house", "river", "answer"], ["takes", "sees", "leaves", "finds", "is"]
    words = ["the", "a", "red", "blue", "step", "because", "therefore", *nouns, *verbs]
    return [
        " ".join(random.choice(words, 8)).capitalize() + f", {random.integers(1000)} times.\n"
        for _ in range(400)
    ]


@pytest.fixture(scope="session")
def tokenizer(corpus):
    """A small SentencePiece tokenizer with the control tokens of every layout."""
    from orca_jax.data import layouts
    from orca_jax.data.tokenizer import train

    names = sorted({token for tokens in layouts.CONTROL_TOKENS.values() for token in tokens})
    return train(corpus, 400, names)
