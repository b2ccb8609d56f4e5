"""Lower packages never import upper ones."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "orca_jax"
# Lowest first: a package imports itself, packages before it, and the top-level modules.
LAYERS = (
    "queries",
    "teachers",
    "data",
    "student",
    "training",
    "serving",
    "evaluation",
    "reporting",
    "planning",
)
SHARED = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
WITHOUT_JAX = ("queries", "teachers", "evaluation", "reporting")
RUNS_A_MODEL = {
    "evaluation/run.py",
    "evaluation/model.py",
    "evaluation/during_training.py",
}  # and may know JAX


def imported_packages(path: Path) -> set[str]:
    """The top-level packages of orca_jax that a file imports, wherever in the file it does."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        above = r"(orca_jax\.)?(experiments|configs|benchmarks)\b"
        assert not any(re.match(above, name) for name in names), path
        packages |= {name.split(".")[1] for name in names if name.startswith("orca_jax.")}
    return packages


def test_programs_and_configs_are_imported_by_their_installed_names():
    """Bare top-level names would be anybody's once the package is installed."""
    root = PACKAGE.parent
    for path in [
        file for folder in ("experiments", "configs", "tests") for file in (root / folder).rglob("*.py")
    ]:
        bare = re.search(r"^\s*(from|import) (experiments|configs)\b", path.read_text(encoding="utf-8"), re.M)
        assert not bare, f"{path.relative_to(root)}: {bare[0]}"


def test_every_package_has_its_layer():
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert packages == set(LAYERS)


def test_the_map_has_every_package_and_shared_module():
    page = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    table = page[page.index("## Packages") : page.index("## Where to change what")]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall("`(.+?)`", row)}
    packages = {f"{package}/" for package in (*LAYERS, "experiments", "configs")}
    assert named == packages | {f"{name}.py" for name in SHARED}


@pytest.mark.parametrize("package", LAYERS)
def test_package_imports_only_lower_packages(package):
    lower = set(LAYERS[: LAYERS.index(package) + 1])
    for path in (PACKAGE / package).rglob("*.py"):
        upper = imported_packages(path) - lower - SHARED - {"__version__"}
        assert not upper, f"{path.relative_to(PACKAGE)} imports {sorted(upper)}"


@pytest.mark.parametrize("module", sorted(SHARED))
def test_shared_modules_import_no_package(module):
    assert imported_packages(PACKAGE / f"{module}.py") <= SHARED | {"__version__"}


@pytest.mark.parametrize("package", WITHOUT_JAX)
def test_package_knows_nothing_of_jax(package):
    for path in (PACKAGE / package).rglob("*.py"):
        if path.relative_to(PACKAGE).as_posix() in RUNS_A_MODEL:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("jax", "flax") for name in names), path
