"""The paper's tables as LaTeX compile, with the packages that they name."""

import shutil
import subprocess

import pytest

from orca_jax.reporting import paper_writers

pytestmark = pytest.mark.proof
DOCUMENT = r"""
\documentclass{article}
\usepackage{booktabs,adjustbox}
\begin{document}
%s
\end{document}
"""


def test_tables_compile(tmp_path):
    if not shutil.which("pdflatex"):
        pytest.skip("needs pdflatex with booktabs and adjustbox")
    paper_writers.write_paper([], tmp_path)
    inputs = [rf"\input{{{path.stem}}}" for path in sorted(tmp_path.glob("*.tex"))]
    assert len(inputs) == 7
    (tmp_path / "all.tex").write_text(DOCUMENT % "\n".join(inputs))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
