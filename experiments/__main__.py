"""The list of the programs: `python -m orca_jax.experiments`."""

import ast
from pathlib import Path

if __name__ == "__main__":
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        print(f"{path.stem:<10}{summary}")
    print("\npython -m orca_jax.experiments.NAME --help says more.")
