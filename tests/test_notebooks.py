"""The notebooks run from the first cell to the last, and are committed with outputs that hold no error."""

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbformat: install the extra `notebooks`")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FOUR = {"ablation", "data_and_system_messages", "evaluation_and_statistics", "paper_tables"}

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell shows: `stream`, or the form of a result that stands before its plain text."""
    return {min(output.get("data", ()), default=output.output_type) for output in cell.outputs}


def test_there_are_four():
    assert {path.stem for path in NOTEBOOKS} == FOUR


@by_name
def test_outputs_are_committed(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("text/markdown" in output.get("data", {}) for output in outputs)


@by_name
def test_outputs_name_no_place_of_the_machine(path):
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not re.findall(r"/(?:home|root|work|tmp|Users)/", text)


@by_name
def test_the_first_cell_installs_on_colab_alone(path):
    first = code_cells(nbformat.read(path, as_version=4))[0]
    installs = (
        'if "google.colab" in sys.modules:\n    package = next(map(str, Path.cwd().glob("orca_jax-*.whl"))'
    )
    assert installs in first.source
    assert not first.outputs


@pytest.mark.proof
@by_name
def test_runs(path):
    """In the seconds' form, in a new kernel; every cell that shows something committed shows it again."""
    pytest.importorskip("ipykernel", reason="needs ipykernel: install the extra `notebooks`")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: install the extra `notebooks`")
    committed = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    # One device, as on a laptop: the tests' eight would need rows for eight.
    client.execute(env={**os.environ, "ORCA_JAX_RUNLOCAL": "1", "XLA_FLAGS": ""})
    assert [kinds(cell) for cell in code_cells(notebook)] == [kinds(cell) for cell in code_cells(committed)]
