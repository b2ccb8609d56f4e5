"""The wheel and the source archive hold the whole package and nothing else; all versions are one."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser

import pytest
import yaml

import orca_jax

# Where each folder of the tree lies in a wheel.
FOLDERS = {"orca_jax": "orca_jax", "experiments": "orca_jax/experiments", "configs": "orca_jax/configs"}
BESIDE = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
CODE = (".py", ".csv", ".jinja", ".css", ".js")
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
# What an installed package reads beside its code.
READS = """
import pathlib, sys
import orca_jax
from orca_jax.configs import mini
from orca_jax.planning.chips import chips
from orca_jax.queries.system_messages import all_messages
for module in (orca_jax, mini):
    assert pathlib.Path(module.__file__).is_relative_to(sys.argv[1]), module.__file__
assert mini.get_config("runlocal").name == "mini" and chips() and all_messages()
print(orca_jax.__version__)
"""


@pytest.fixture
def tree(tmp_path, repo):
    """The files that a build reads, in a folder of their own: a build leaves folders behind."""
    copy = tmp_path / "tree"
    for folder in (*FOLDERS, "benchmarks"):  # the last is in no wheel
        shutil.copytree(repo / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        shutil.copy(repo / name, copy)
    return copy


def build(source, kind, out):
    """Without isolation: nothing is fetched."""
    pytest.importorskip("setuptools", minversion="77")
    out.mkdir()
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    [made] = out.iterdir()
    return made


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(tree, tmp_path):
    expected = {
        f"{place}/{path.relative_to(tree / folder)}"
        for folder, place in FOLDERS.items()
        for path in (tree / folder).rglob("*")
        if path.suffix in CODE
    }
    wheel = build(tree, "wheel", tmp_path / "wheel")
    about = f"orca_jax-{orca_jax.__version__}.dist-info"
    files = contents(wheel)
    assert {name for name in files if not name.startswith(f"{about}/")} == expected
    assert f"{about}/licenses/LICENSE" in files
    metadata = Parser().parsestr(files[f"{about}/METADATA"].decode())
    assert (metadata["Name"], metadata["Version"]) == ("orca_jax", orca_jax.__version__)

    archive = build(tree, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    [unpacked] = (tmp_path / "unpacked").iterdir()
    assert {"CHANGELOG.md", "CITATION.cff", "LICENSE"} <= {path.name for path in unpacked.iterdir()}
    assert contents(build(unpacked, "wheel", tmp_path / "again")) == files


@pytest.mark.slow
def test_an_installed_package_finds_its_configs_and_data(tree, tmp_path):
    with zipfile.ZipFile(build(tree, "wheel", tmp_path / "wheel")) as archive:
        archive.extractall(tmp_path / "site")
    site = str(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", READS, site],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": site},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == orca_jax.__version__, done.stderr[-2000:]


def test_every_pip_finds_the_extras(repo):
    """The pip of a new environment of Python 3.12.1 takes extras as typed, and the metadata has no `_`."""
    extras = re.findall(r'^    "(.+)": \[', (repo / "setup.py").read_text(), re.M)
    assert "gpu-plan" in extras
    assert all(re.fullmatch("[a-z0-9-]+", name) for name in extras)


def test_changelog_and_citation_are_of_this_version(repo):
    newest = re.search(r"^## \[(\d.*?)\] - (\S+)$", (repo / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    citation = yaml.safe_load((repo / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest[1] == citation["version"] == orca_jax.__version__
    assert newest[2] == str(citation["date-released"])
