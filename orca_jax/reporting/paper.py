"""The tables of the Orca paper (arXiv 2306.02707): their cells, headings, decimals and footnotes.

A table's cell is the one published cell (`published.csv`) that its row's and its column's filters leave;
`paper_columns.csv` has the columns. The footnotes of `paper_notes.csv` say where the paper contradicts itself
or its data files, and which number is used here.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping

from orca_jax.reporting import published
from orca_jax.reporting.published import PublishedCell

GAIN = "relative_gain_over_vicuna"
AVERAGE_LABEL = "Average"
_LABELS = {
    "aqua-rat": "AQuA-RAT",
    "logiqa-en": "LogiQA",
    "lsat-ar": "LSAT-AR",
    "lsat-lr": "LSAT-LR",
    "lsat-rc": "LSAT-RC",
    "sat-math": "SAT-Math",
    "sat-en": "SAT-English",
    "sat-en-without-passage": "SAT-English without passage",
    "disambiguation_qa": "Disambiguation QA",
    "lgbtq": "LGBTQ",
    "middle_east": "Middle East",
    "native_american": "Native American",
    "wizardlm_prompts": "WizardLM prompts",
}


@dataclasses.dataclass(frozen=True, slots=True)
class PaperColumn:
    """`compared` columns are Orca-13B's, which measured values stand beside."""

    heading: str
    filters: Mapping[str, str]
    decimals: int
    compared: bool


def label(task: str) -> str:
    """A task's or group's name as it is shown."""
    numbers = {"three": 3, "five": 5, "seven": 7}
    counted = re.sub(r"_(three|five|seven)_objects$", lambda match: f" ({numbers[match[1]]} objects)", task)
    return _LABELS.get(task, counted.replace("_", " ").capitalize())


def _tasks(table: str) -> dict[str, dict[str, str]]:
    """A row a task, in the paper's order, the average last."""
    return {label(cell.task): {"task": cell.task} for cell in published.cells(table=table)}


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """`corner` is the heading of the rows, `source` says where the cells are from.

    Attributes:
      rows: the filters of each row, by its label, the average last; by default a row a task.
      scale: makes fractions of what is shown: 100 for per cent, 1 for probabilities.
    """

    name: str
    title: str
    source: str
    rows: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    _: dataclasses.KW_ONLY
    corner: str = "Task"
    scale: int = 100

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", self.rows or _tasks(self.name))

    @property
    def tasks(self) -> list[str]:
        """The labels of the rows that the average is over."""
        return [label for label in self.rows if label != AVERAGE_LABEL]

    @property
    def place(self) -> str:
        """Its number in the paper, such as "Table 8"."""
        return self.title.partition(":")[0]

    @functools.cached_property
    def columns(self) -> list[PaperColumn]:
        names = ("table", "system", "condition", "metric")
        return [
            PaperColumn(
                row["heading"],
                {name: row[name] for name in names if row[name]},
                int(row["decimals"]),
                bool(row["compared"]),
            )
            for row in published.rows("paper_columns.csv")
            if row["page"] == self.name
        ]

    @property
    def compared(self) -> list[PaperColumn]:
        return [column for column in self.columns if column.compared]

    @property
    def notes(self) -> list[tuple[str, list[tuple[str, ...]]]]:
        """Footnotes, each with the (row, column heading) of the cells that it is about, if it is of some."""
        return [
            (row["note"], [tuple(at.split(" | ")) for at in row["cells"].split("; ") if at])
            for row in published.rows("paper_notes.csv")
            if row["page"] == self.name
        ]

    def cells(self, column: PaperColumn) -> dict[str, PublishedCell]:
        """The published cells of a column by row label, without those that the paper does not have."""
        found = {label: published.cell(**row, **column.filters) for label, row in self.rows.items()}
        return {label: cell for label, cell in found.items() if cell}


TABLE_7 = PaperTable(
    "table_7",
    "Table 7: GPT-4 as judge, the candidate's total score in per cent of the reference's",
    "Table 7, one run, the reference always first; n as in Table 5",
    corner="Prompts",
)
TABLE_8 = PaperTable(
    "table_8",
    "Table 8: AGIEval, zero-shot accuracy in per cent on the English multiple-choice sets",
    "Table 8, n from the data files; the columns of humans, text-davinci-003, ChatGPT and GPT-4 "
    "are copied there from the AGIEval paper",
)
TABLE_9 = PaperTable(
    "table_9",
    "Table 9: AGIEval, Orca-13B's accuracy in per cent under three system messages",
    "Table 9, n from the data files",
)
TABLE_10 = PaperTable(
    "table_10",
    "Table 10: AGIEval, accuracy in per cent with and without ChatGPT as intermediate teacher",
    "Table 10, n from the data files",
)
TABLE_11 = PaperTable(
    "table_11",
    "Table 11: Big-Bench Hard, zero-shot accuracy in per cent on the multiple-choice tasks",
    "Table 11, the authors' own runs; n as scored",
)
TRUTHFULQA = PaperTable(
    "truthfulqa",
    "Figures 14 and 15: TruthfulQA, four options a question, in per cent",
    "read off the bars of Figures 14 and 15, to whole items",
    {
        "Accuracy": {"table": "fig_14", "metric": "accuracy"},
        "Replies not in the format": {"table": "fig_15", "metric": "format_failure_rate"},
    },
    corner="",
)
TOXIGEN = PaperTable(
    "toxigen",
    "Figures 18 and 19: ToxiGen, mean probability of toxicity (HateBERT) by group",
    "read off the bars of Figures 18 and 19; how many prompts there were is not said",
    _tasks("fig_18a"),
    corner="Group",
    scale=1,
)
TABLES = (TABLE_7, TABLE_8, TABLE_9, TABLE_10, TABLE_11, TRUTHFULQA, TOXIGEN)
