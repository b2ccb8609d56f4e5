"""The licences of the locked packages, as their own metadata say, in an environment that has them.

python requirements/licences.py > requirements/licences.md
"""

import importlib.metadata
import re
from pathlib import Path
from typing import Any

LOCK = Path(__file__).with_name("dev.txt")


def locked() -> dict[str, str]:
    """Package to version."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", LOCK.read_text(encoding="utf-8"), re.M))


def licence(name: str) -> str:
    """Of an installed package: its expression, else its classifiers, else the first line of its text."""
    about: Any = importlib.metadata.metadata(name)
    classifiers = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier", []) if "License ::" in c]
    text = (about.get("License") or "not stated").splitlines()[0]
    return str(about.get("License-Expression") or "; ".join(classifiers) or text)


if __name__ == "__main__":
    print("| package | version | licence |\n|---|---|---|")
    for name, version in locked().items():
        print(f"| {name} | {version} | {licence(name)} |")
