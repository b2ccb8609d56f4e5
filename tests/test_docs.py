"""The pages: their links, and that what their commands and paths name is there. tests/docs runs them."""

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orca_jax.config import load
from tests.docs import pages
from tests.docs.pages import NAMES, PAGES, REPOSITORY

ROOMS = (
    "benchmarks",
    "configs",
    "docs",
    "experiments",
    "launch",
    "notebooks",
    "orca_jax",
    "requirements",
    "tests",
)


def anchors(page):
    """What GitHub and mkdocs call a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    heads = [re.sub(r"[`*]", "", head).lower() for head in re.findall(r"^#+ (.+)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", head).strip().replace(" ", "-") for head in heads}


def commands(page):
    return [command.text for command in pages.commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_paths_exist(page):
    packages = "|".join(ROOMS)
    for path in re.findall(rf"`((?:{packages})/[\w./-]*\w)[`:]", page.read_text()):
        assert (REPOSITORY / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_name_programs_configs_and_targets_that_exist(page):
    targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.M)
    for command in commands(page):
        for module in re.findall(r"python -m ((?:benchmarks|experiments|orca_jax)[.\w]*)", command):
            assert importlib.util.find_spec(module), command
        for path in re.findall(r"(?:\s|=)((?:configs|tests|launch|notebooks)/[\w./-]*\w)", command):
            assert (REPOSITORY / path).exists(), command
        if command.startswith("make "):
            assert command.split()[1] in targets, command


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_give_flags_that_are_known(page):
    files = [*(REPOSITORY / "experiments").glob("*.py"), REPOSITORY / "orca_jax/cli.py"]
    sources = "".join(path.read_text() for path in files)
    pattern = r'(?:DEFINE_\w+|add|add_argument|Option)\(\s*(?:"-\w", )?"(?:--)?(\w+)"'
    known = set(re.findall(pattern, sources))
    for command in commands(page):
        if "python -m experiments." in command:
            program = re.sub(r".*?(?=python -m experiments)", "", command)
            assert set(re.findall(r"\s--(\w+)(?=[=\s]|$)", program)) <= known | {"help"}, command


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_benchmarks_are_given_parameters_that_they_have(page):
    for command in commands(page):
        for module, rest in re.findall(r"python -m (benchmarks\.\w+)(.*)", command):
            if module == "benchmarks.parity":
                pytest.importorskip("torch")
            known = inspect.signature(importlib.import_module(module).main).parameters
            assert set(re.findall(r"\s--(\w+)", rest)) <= set(known), command


def overrides():
    """Every command that changes a config: (page, config, its argument, the keys)."""
    for page in PAGES:
        for command in commands(page):
            given = re.search(r"--config=(configs/[\w/]+)\.py(?::(\S+))?", command)
            keys = re.findall(r"--config\.([\w.\[\]]+)=", command)
            if given and keys and "/ablations/" not in given[1]:
                yield pytest.param(given[1], given[2] or "", keys, id=f"{page.name}-{keys[0]}")


@pytest.mark.parametrize(("config", "argument", "keys"), list(overrides()))
def test_overrides_name_keys_that_exist(config, argument, keys):
    module = importlib.import_module(f"orca_jax.{config.replace('/', '.')}")
    resolved = module.get_config(argument)
    load(resolved)
    for key in keys:
        value = json.loads(resolved.to_json_best_effort())
        for part in re.findall(r"\w+", key):
            value = value[int(part) if part.isdigit() and isinstance(value, list) else part]


def test_every_page_is_on_the_site():
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    pages = re.findall(r"[\w-]+\.md", json.dumps(nav))
    assert sorted(pages) == sorted(set(NAMES) - {"README.md"})


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs: install the extra `docs`"
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={tmp_path}"]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert {path.stem for path in tmp_path.glob("*.html")} >= {Path(name).stem for name in NAMES[1:]}


# What is installed

PERMISSIVE = ("MIT", "Apache", "BSD", "PSF", "Python Software Foundation", "0BSD", "Zlib", "CC0")
WEAK = ("MPL-2.0", "Mozilla Public License 2.0")  # files of theirs that are changed stay under it; none is
STRONG = re.compile(r"\b[AL]?GPL\b|Affero|not stated|SSPL|Commercial", re.I)


def lock():
    return (REPOSITORY / "requirements/dev.txt").read_text()


def test_every_locked_package_has_hashes_and_a_licence_that_goes_with_ours():
    packages = re.findall(
        r"^([\w.-]+)==(\S+) (?:; [^\\]+)?\\\n((?:    --hash=sha256:[0-9a-f]{64}.*\n)+)", lock(), re.M
    )
    assert len(packages) == len(re.findall(r"^[\w.-]+==", lock(), re.M))
    listed = re.findall(
        r"^\| ([\w.-]+) \| (\S+) \| (.+) \|$", (REPOSITORY / "requirements/licences.md").read_text(), re.M
    )
    assert [(name, version) for name, version, _ in listed[1:]] == [package[:2] for package in packages]
    for name, _, licence in listed[1:]:
        assert any(word in licence for word in (*PERMISSIVE, *WEAK)), name
        assert not STRONG.search(licence), name


def test_what_setup_asks_for_is_locked():
    asked = (REPOSITORY / "setup.py").read_text()
    base = asked.partition("install_requires=[")[2].partition("]")[0]
    extras = re.findall(r'^    "(?:serve|dedup|test|dev|docs)": \[(.+)\]', asked, re.M)
    names = re.findall(r'"([A-Za-z0-9-]+)', " ".join([base, *extras]))
    locked = {name.lower() for name in re.findall(r"^([\w.-]+)==", lock(), re.M)}
    assert len(names) > 25
    assert [name for name in names if name.lower() not in locked] == []
