"""Every program imports with the dependencies of setup.py alone, whatever else is installed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Run in an interpreter of its own: refuses whatever no dependency (nor one of theirs) brings.
PROGRAM = """
import importlib.metadata as metadata, importlib, re, sys
from packaging.requirements import Requirement

def name(text):
    return re.sub("[-_.]+", "-", text).lower()

def needed(distribution, extras, found):
    if (name(distribution), tuple(extras)) in found:
        return
    found.add((name(distribution), tuple(extras)))
    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or [""]):
            needed(requirement.name, sorted(requirement.extras), found)

found = set()
needed("orca_jax", [], found)
brought = {distribution for distribution, _ in found}
assert "jax" in brought, "orca_jax is not installed with its requirements"
tops = metadata.packages_distributions()
tops = {top: set(map(name, distributions)) for top, distributions in tops.items()}

class Refuse:
    def find_spec(self, module, path=None, target=None):
        top = module.partition(".")[0]
        if top in tops and not tops[top] & brought:
            raise ModuleNotFoundError(f"{top}, of {sorted(tops[top])}, is no dependency", name=top)

sys.meta_path.insert(0, Refuse())
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


def modules(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    return [".".join(("orca_jax", *path.relative_to(ROOT).with_suffix("").parts)) for path in files]


SERVE = "orca_jax.experiments.serve"


def programs():
    return sorted({module for module in modules("experiments") if "__init__" not in module} - {SERVE})


def imported(names):
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, *names]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_programs_import_with_the_base_dependencies():
    done = imported(programs())
    assert done.returncode == 0, done.stderr[-2000:]


def test_serving_names_its_extra():
    done = imported([SERVE])
    assert done.returncode == 1
    assert "serving needs an extra: pip install -e '.[serve]'" in done.stderr


def test_what_only_an_extra_brings_is_refused():
    done = imported(["pytest"])
    assert done.returncode != 0
    assert "is no dependency" in done.stderr
