"""The paper's tables and figures as files: Markdown, LaTeX, CSV, Parquet, SVG, PNG, and an index.

Markdown and LaTeX show rounded cells; CSV and Parquet hold a record a cell, unrounded. The LaTeX needs the
packages booktabs and adjustbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orca_jax.artifacts import atomic_write
from orca_jax.reporting import paper_figures, paper_tables
from orca_jax.reporting.paper import TABLES
from orca_jax.reporting.paper_figures import Drawing
from orca_jax.reporting.paper_tables import NO, NOT_MEASURED, PART, YES, MeasuredRun, Page
from orca_jax.reporting.published import AVERAGE
from orca_jax.reporting.tables import markdown as markdown_table

INDEX = "README.md"


def write_paper(folders: Sequence[str | Path], out: Path) -> str:
    """Writes the paper's tables and figures with what the runs in `folders` measured; returns the index."""
    runs = paper_tables.find(folders)
    pages = [paper_tables.page(table, runs) for table in TABLES]
    return write(out, pages, paper_figures.drawings(runs), runs)


def write(out: Path, pages: Sequence[Page], drawings: Sequence[Drawing], runs: Sequence[MeasuredRun]) -> str:
    """Writes every table and figure into `out`, and its index, which is returned."""
    for page in pages:
        name = out / page.table.name
        for suffix, text in (("md", markdown(page)), ("tex", latex(page))):
            with atomic_write(name.with_suffix(f".{suffix}")) as file:
                file.write(text)
        with atomic_write(name.with_suffix(".csv")) as file:
            page.values.to_csv(file, index=False, lineterminator="\n")
        with atomic_write(name.with_suffix(".parquet"), "wb") as file:
            page.values.to_parquet(file, index=False)
    for drawing in drawings:
        for suffix in ("svg", "png"):
            with atomic_write(out / f"{drawing.name}.{suffix}", "wb") as file:
                drawing.chart.save(file, suffix)
    text = index(pages, drawings, runs)
    with atomic_write(out / INDEX) as file:
        file.write(text)
    return text


def markdown(page: Page) -> str:
    """The page as Markdown: every table with its title and notes."""
    parts: list[str] = []
    for number, table in enumerate(page.tables):
        parts += [f"{'##' if number else '#'} {table.title}", table.markdown().strip(), *table.notes]
    return "\n\n".join([*parts, *page.notes]) + "\n"


def latex(page: Page) -> str:
    """The page as LaTeX `table`s, to be pasted or read with \\input."""
    parts = [table.latex(f"tab:orca-{page.table.name}-{i}") for i, table in enumerate(page.tables)]
    return "% needs \\usepackage{booktabs,adjustbox}\n" + "\n".join(parts)


def index(pages: Sequence[Page], drawings: Sequence[Drawing], runs: Sequence[MeasuredRun]) -> str:
    """The index: the folder's files, and how many of the paper's cells each run reproduces."""
    suffixes = ("md", "tex", "csv", "parquet")
    parts = [
        "# Tables and figures of Orca (arXiv 2306.02707)",
        "Published cells are facts of the paper, with corrected numbers of items; footnotes say where the "
        "paper contradicts itself. CSV and Parquet hold a record a cell, unrounded, with its source.",
        *(_runs(pages, runs) if runs else ["No run was given: published cells only."]),
        "## Tables",
        "\n".join(
            f"- {page.table.title}: " + ", ".join(f"[{s}]({page.table.name}.{s})" for s in suffixes)
            for page in pages
        ),
        "## Figures",
    ]
    for drawing in drawings:
        parts += [f"### {drawing.title}", f"![{drawing.title}]({drawing.name}.png)", *drawing.notes]
        parts.append(f"[SVG]({drawing.name}.svg), [PNG]({drawing.name}.png)")
    return "\n\n".join(parts) + "\n"


def _runs(pages: Sequence[Page], runs: Sequence[MeasuredRun]) -> list[str]:
    """How much of the paper each run measured and reproduced, and what was evaluated otherwise."""
    rows, left_out = [], []
    for run in runs:
        row, shown = [run.name], set()
        for page in pages:
            own = page.values[(page.values.run == run.name) & (page.values.task != AVERAGE)]
            counts = own.reproduced.value_counts()
            row.append(" / ".join(str(counts.get(name, 0)) for name in (YES, NO, PART, NOT_MEASURED)))
            found = (
                page.table.cell(label, column) for label in page.table.rows for column in page.table.compared
            )
            shown |= {paper_tables.evaluation(run, cell) for cell in found if cell}
        rows.append(row)
        if names := ", ".join(folder.name for folder in run.evaluations if folder not in shown):
            left_out.append(f"{run.name}: {names}.")
    if left_out:
        left_out.insert(0, "Evaluated, but not as the paper did, so not among the tables:")
    return [
        "## Runs",
        "Cells within error of Orca-13B's / not within error / only a part of the questions / not measured, "
        "averages not counted. The paper sampled at temperature 0.7; runs reply as their configs say.",
        markdown_table(["Run", *(page.table.place for page in pages)], rows).strip(),
        *left_out,
    ]
