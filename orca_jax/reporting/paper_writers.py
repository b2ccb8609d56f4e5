"""The paper's tables and figures as files: Markdown, LaTeX, CSV, Parquet, SVG, PNG, and an index.

Markdown and LaTeX show rounded cells; CSV and Parquet hold a record a cell, unrounded. The LaTeX needs the
packages booktabs and adjustbox. Figures are those of scores, with runs beside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from orca_jax.artifacts import atomic_write
from orca_jax.evaluation import cells
from orca_jax.evaluation.cells import Cell
from orca_jax.reporting import charts, paper, paper_tables, published
from orca_jax.reporting.charts import Chart
from orca_jax.reporting.paper import AVERAGE_LABEL, PaperTable
from orca_jax.reporting.paper_tables import (
    NO,
    NOT_MEASURED,
    PART,
    YES,
    Cells,
    MeasuredRun,
    Page,
    measured,
    measured_cells,
    published_cells,
)
from orca_jax.reporting.published import AVERAGE
from orca_jax.reporting.tables import markdown as markdown_table

INDEX = "README.md"
SYSTEMS = {
    "llama-13b": "LLaMA-13B",
    "alpaca-13b": "Alpaca-13B",
    "vicuna-13b": "Vicuna-13B",
    "bard": "Bard",
    "chatgpt": "ChatGPT",
    "orca-13b": "Orca-13B",
}
FIGURE_2_NOTE = "The paper's figure has Vicuna-13B at 30; the cells of Table 8 give 29.3."
MEASURED_NOTE = f"Runs: {cells.ERRORS}; {cells.PARTS}."


@dataclasses.dataclass(frozen=True, slots=True)
class Drawing:
    name: str
    title: str
    chart: Chart
    notes: tuple[str, ...] = ()


def write_paper(folders: Sequence[str | Path], out: Path) -> str:
    """Writes the paper's tables and figures with what the runs in `folders` measured; returns the index."""
    runs = paper_tables.find(folders)
    pages = [paper_tables.page(table, runs) for table in paper.TABLES]
    drawn = drawings(runs)
    for page in pages:
        name = out / page.table.name
        for suffix, text in (("md", markdown(page)), ("tex", latex(page))):
            with atomic_write(name.with_suffix(f".{suffix}")) as file:
                file.write(text)
        with atomic_write(name.with_suffix(".csv")) as file:
            page.values.to_csv(file, index=False, lineterminator="\n")
        with atomic_write(name.with_suffix(".parquet"), "wb") as file:
            page.values.to_parquet(file, index=False)
    for drawing in drawn:
        for suffix in ("svg", "png"):
            with atomic_write(out / f"{drawing.name}.{suffix}", "wb") as file:
                drawing.chart.save(file, suffix)
    text = index(pages, drawn, runs)
    with atomic_write(out / INDEX) as file:
        file.write(text)
    return text


def markdown(page: Page) -> str:
    """The page as Markdown: every table with its title and notes."""
    parts: list[str] = []
    for number, table in enumerate(page.tables):
        parts += [f"{'##' if number else '#'} {table.title}", table.noted().strip()]
    return "\n\n".join([*parts, *page.notes]) + "\n"


def latex(page: Page) -> str:
    """The page as LaTeX `table`s, to be pasted or read with \\input."""
    parts = [table.latex(f"tab:orca-{page.table.name}-{i}") for i, table in enumerate(page.tables)]
    return "% needs \\usepackage{booktabs,adjustbox}\n" + "\n".join(parts)


def index(pages: Sequence[Page], drawn: Sequence[Drawing], runs: Sequence[MeasuredRun]) -> str:
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
    for drawing in drawn:
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
            found = (cell for of in map(page.table.cells, page.table.compared) for cell in of.values())
            shown |= {paper_tables.evaluation(run, cell) for cell in found}
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


# Figures


def drawings(runs: Sequence[MeasuredRun]) -> list[Drawing]:
    """Figures 1-3, 11 and 12."""
    return [
        _figure_1(runs),
        _averages("figure_2", "Figure 2: AGIEval, mean of 8 tasks", paper.TABLE_8, runs, FIGURE_2_NOTE),
        _averages("figure_3", "Figure 3: Big-Bench Hard, mean of 23 tasks", paper.TABLE_11, runs),
        _radar("figure_11", "Figure 11: AGIEval by task", paper.TABLE_8, runs),
        _radar("figure_12", "Figure 12: Big-Bench Hard by task", paper.TABLE_11, runs),
    ]


def _figure_1(runs: Sequence[MeasuredRun]) -> Drawing:
    printed = {cell.system: cell for cell in published.cells(table="fig_1")}
    theirs = {name: Cell(printed[system].value / 100) for system, name in SYSTEMS.items()}
    own = {_named(run, [cell]): cell for run in runs if (cell := measured(run, printed["orca-13b"]))}
    chart = _bars(theirs, own, "Candidate's total in per cent of ChatGPT's.", decimals=0)
    note = "Orca-13B is at 103 in the paper's figure and at 101.5 in its Table 7."
    notes = (note, MEASURED_NOTE) if own else (note,)
    return Drawing("figure_1", "Figure 1: GPT-4's scores on the Vicuna prompts", chart, notes)


def _averages(name: str, title: str, table: PaperTable, runs: Sequence[MeasuredRun], *notes: str) -> Drawing:
    theirs = {
        column.heading: Cell(published_cells(table, column)[AVERAGE_LABEL].value)
        for column in table.columns
        if column.filters["system"] != "human" and column.filters["metric"] != paper.GAIN
    }
    averages = [(run, measured_cells(run, table, table.compared[0]).get(AVERAGE_LABEL)) for run in runs]
    own = {_named(run, [cell]): cell for run, cell in averages if cell}
    guesses = _chance(table).values()
    chart = _bars(theirs, own, "Accuracy in per cent.", chance=sum(guesses) / len(guesses))
    measured_note = (MEASURED_NOTE,) if own else ()
    return Drawing(name, title, chart, (f"From the cells of {table.place}.", *notes, *measured_note))


def _named(run: MeasuredRun, found: Sequence[Cell]) -> str:
    """A run's name in a legend."""
    return f"{run.name} (a part)" if any(cell.is_part for cell in found) else run.name


def _chance(table: PaperTable) -> dict[str, float]:
    """Accuracy of a random guess by row, without the average."""
    by_task = {
        cell.task: cell.value / 100 for cell in published.cells(table="derived", system="random_guess")
    }
    return {label: by_task[table.rows[label]["task"]] for label in table.tasks}


def _bars(
    theirs: Cells, own: Cells, caption: str, *, decimals: int = 1, chance: float | None = None
) -> Chart:
    """A bar a system; `own` are the runs', with errors."""
    rows = {name: {"Orca-13B" if name == "Orca-13B" else "others": cell} for name, cell in theirs.items()}
    rows |= {name: {"measured": cell} for name, cell in own.items()}
    return charts.bars(rows, dict.fromkeys(rows, chance), caption=caption, decimals=decimals)


def _radar(name: str, title: str, table: PaperTable, runs: Sequence[MeasuredRun]) -> Drawing:
    series: dict[str, Cells] = {
        column.heading: published_cells(table, column)
        for column in table.columns
        if column.heading in ("GPT-4", "ChatGPT", "Orca-13B")
    }
    own = [(run, measured_cells(run, table, table.compared[0])) for run in runs]
    series |= {_named(run, [*found.values()]): found for run, found in own if found}
    rows = {task: {system: found.get(task) for system, found in series.items()} for task in table.tasks}
    chart = charts.radar(rows, caption=title, chance=_chance(table), whole=False)
    assert chart
    return Drawing(name, title, chart, (f"Accuracy in per cent, from the cells of {table.place}.",))
