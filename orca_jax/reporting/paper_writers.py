"""The paper's tables and figures as files: Markdown, LaTeX, CSV, Parquet, SVG, PNG, and an index.

Markdown and LaTeX show rounded cells; CSV and Parquet hold a record a cell, unrounded. The LaTeX needs the
packages booktabs and adjustbox.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orca_jax.artifacts import atomic_write
from orca_jax.reporting import paper_figures, paper_tables
from orca_jax.reporting.paper import TABLES
from orca_jax.reporting.paper_figures import Drawing
from orca_jax.reporting.paper_tables import MARKS, NO, NOT_MEASURED, PART, YES, Grid, MeasuredRun, Page
from orca_jax.reporting.published import AVERAGE
from orca_jax.reporting.tables import markdown as markdown_table

INDEX = "README.md"
_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "–": "--",
    "“": "``",
    "”": "''",
    **{mark: rf"\textsuperscript{{{letter}}}" for mark, letter in zip(MARKS, "abcdef")},
}
_FLOATS = ("printed", *(f"{of}{name}" for of in ("", "difference_") for name in ("stderr", "low", "high")))
_TYPES = {
    **dict.fromkeys(("n", "of"), "int64"),
    **dict.fromkeys((*_FLOATS, "value", "difference"), "float64"),
}  # of the columns that are not text


def write_paper(folders: Sequence[str | Path], out: Path) -> str:
    """Writes the paper's tables and figures with what the runs in `folders` measured; returns the index."""
    runs = paper_tables.find(folders)
    pages = [paper_tables.page(table, runs) for table in TABLES]
    shares, lengths = paper_figures.message_shares(), paper_figures.answer_lengths(runs)
    return write(out, pages, paper_figures.drawings(runs, shares, lengths), runs)


def write(out: Path, pages: Sequence[Page], drawings: Sequence[Drawing], runs: Sequence[MeasuredRun]) -> str:
    """Writes every table and figure into `out`, and its index, which is returned."""
    for page in pages:
        _write(out / f"{page.table.name}.md", markdown(page))
        _write(out / f"{page.table.name}.tex", latex(page))
        _write(out / f"{page.table.name}.csv", comma_separated(page.values))
        _write_parquet(out / f"{page.table.name}.parquet", page.values)
    for drawing in drawings:
        _write_drawing(out, drawing)
    text = index(pages, drawings, runs)
    _write(out / INDEX, text)
    return text


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)


# Tables


def markdown(page: Page) -> str:
    """The page as Markdown: every grid with its title and notes."""
    parts: list[str] = []
    for grid in page.grids:
        mark = "#" if grid is page.grids[0] else "##"
        parts += [f"{mark} {grid.title}", markdown_table(grid.header, grid.rows).strip(), *grid.notes]
    return "\n\n".join([*parts, *page.notes]) + "\n"


def latex(page: Page) -> str:
    """The page as LaTeX `table`s, to be pasted or read with \\input."""
    parts = [_latex_grid(grid, f"tab:orca-{page.table.name}-{i}") for i, grid in enumerate(page.grids)]
    return "% needs \\usepackage{booktabs,adjustbox}\n" + "\n".join(parts)


def _latex_grid(grid: Grid, name: str) -> str:
    rows = [_latex_row(row) for row in grid.rows]
    if grid.ruled:
        rows.insert(-1, r"\midrule")
    return "\n".join(
        (
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{escape(re.sub(r'^Table [0-9]+: ', '', grid.title))}}}",
            rf"\label{{{name}}}",
            r"\begin{adjustbox}{max width=\linewidth}",
            rf"\begin{{tabular}}{{l{'r' * (len(grid.header) - 1)}}}",
            r"\toprule",
            _latex_row(grid.header),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            *(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {escape(note)}}}" for note in grid.notes),
            r"\end{table}",
            "",
        )
    )


def _latex_row(entries: Sequence[str]) -> str:
    return " & ".join(map(escape, entries)) + r" \\"


def escape(text: str) -> str:
    """Text with LaTeX's special characters made harmless; signs of numbers become mathematical ones."""
    plain = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", plain)


def comma_separated(values: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(values[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    return text.getvalue()


def _write_parquet(path: Path, values: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {name: getattr(pyarrow, _TYPES.get(name, "string"))() for name in values[0]}
    with atomic_write(path, "wb") as file:
        parquet.write_table(pyarrow.Table.from_pylist(list(values), pyarrow.schema(types)), file)


# Figures


def _write_drawing(out: Path, drawing: Drawing) -> None:
    import matplotlib

    # Text stays text, and equal figures make equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": drawing.name}):
        with atomic_write(out / f"{drawing.name}.svg", "wb") as file:
            drawing.figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
        with atomic_write(out / f"{drawing.name}.png", "wb") as file:
            drawing.figure.savefig(file, format="png", bbox_inches="tight", dpi=150)


# Index


def index(pages: Sequence[Page], drawings: Sequence[Drawing], runs: Sequence[MeasuredRun]) -> str:
    """The index: the folder's files, and how many of the paper's cells each run reproduces."""
    parts = [
        "# Tables and figures of Orca (arXiv 2306.02707)",
        "Published cells are facts of the paper, with corrected numbers of items; footnotes say where the "
        "paper contradicts itself. CSV and Parquet hold a record a cell, unrounded, with its source.",
        _runs(pages, runs),
        "## Tables",
        "\n".join(
            f"- {page.table.title}: "
            + ", ".join(
                f"[{suffix}]({page.table.name}.{suffix})" for suffix in ("md", "tex", "csv", "parquet")
            )
            for page in pages
        ),
        "## Figures",
    ]
    for drawing in drawings:
        parts += [f"### {drawing.title}", f"![{drawing.title}]({drawing.name}.png)", *drawing.notes]
        parts.append(f"[SVG]({drawing.name}.svg), [PNG]({drawing.name}.png)")
    return "\n\n".join(parts) + "\n"


def _runs(pages: Sequence[Page], runs: Sequence[MeasuredRun]) -> str:
    """How much of the paper each run measured and reproduced, and what was evaluated otherwise."""
    if not runs:
        return "No run was given: published cells only."
    rows = [(run.name, *(_verdicts(page, run) for page in pages)) for run in runs]
    header = ("Run", *(page.table.place for page in pages))
    counted = (
        "Cells within error of Orca-13B's / not within error / only a part of the questions / not measured, "
        "averages not counted. The paper sampled at temperature 0.7; runs reply as their configs say."
    )
    left_out = [f"{run.name}: {names}." for run in runs if (names := ", ".join(_left_out(run, pages)))]
    if left_out:
        left_out.insert(0, "Evaluated, but not as the paper did, so not among the tables:")
    return "\n\n".join(["## Runs", counted, markdown_table(header, rows).strip(), *left_out])


def _verdicts(page: Page, run: MeasuredRun) -> str:
    cells = [value for value in page.values if value["run"] == run.name and value["task"] != AVERAGE]
    found = [cell["reproduced"] for cell in cells]
    return " / ".join(str(found.count(verdict)) for verdict in (YES, NO, PART, NOT_MEASURED))


def _left_out(run: MeasuredRun, pages: Sequence[Page]) -> list[str]:
    """The names of the evaluations that no table shows."""
    cells = [
        cell
        for table in (page.table for page in pages)
        for row, column in itertools.product(table.rows, table.compared)
        if (cell := table.cell(row, column))
    ]
    shown = [paper_tables.evaluation(run, cell) for cell in cells]
    return [each.directory.name for each in run.evaluations if each not in shown]
