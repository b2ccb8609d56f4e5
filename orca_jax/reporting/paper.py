"""The tables of the Orca paper (arXiv 2306.02707) as data: their cells, headings, decimals and footnotes.

A table's cell is the one published cell (`published.csv`) that its row's and its column's filters leave.
Footnotes say where the paper contradicts itself or its data files, and which number is used here.
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
class PaperRow:
    label: str
    filters: Mapping[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class PaperColumn:
    """`compared` columns are Orca-13B's, which measured values stand beside."""

    heading: str
    filters: Mapping[str, str]
    decimals: int = 1
    compared: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """A footnote; `at` are the (row, column heading) of the cells that it is about, if it is about some."""

    text: str
    at: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class PaperTable:
    """`corner` is the heading of the rows, `source` says where the cells are from.

    `scale` makes fractions of what is shown: 100 for per cent, 1 for probabilities.
    """

    name: str
    title: str
    corner: str
    source: str
    rows: tuple[PaperRow, ...]
    columns: tuple[PaperColumn, ...]
    notes: tuple[Note, ...] = ()
    scale: int = 100

    @property
    def tasks(self) -> tuple[str, ...]:
        """The labels of the rows that the average is over."""
        return tuple(row.label for row in self.rows if row.label != AVERAGE_LABEL)

    @property
    def place(self) -> str:
        """Its number in the paper, such as "Table 8"."""
        return self.title.partition(":")[0]

    @property
    def compared(self) -> tuple[PaperColumn, ...]:
        return tuple(column for column in self.columns if column.compared)

    def cell(self, row: PaperRow, column: PaperColumn) -> PublishedCell | None:
        """The published cell, or None where the paper has none."""
        return _found(tuple(sorted({**row.filters, **column.filters}.items())))


@functools.cache
def _found(filters: tuple[tuple[str, str], ...]) -> PublishedCell | None:
    return published.cell(**dict(filters)) if published.cells(**dict(filters)) else None


def label(task: str) -> str:
    """A task's or group's name as it is shown."""
    spaced = re.sub(r"_(three|five|seven)_objects$", _in_brackets, task).replace("_", " ")
    return _LABELS.get(task, spaced.capitalize())


def _in_brackets(match: re.Match[str]) -> str:
    return f" ({ {'three': 3, 'five': 5, 'seven': 7}[match[1]] } objects)"


def _rows(table: str) -> tuple[PaperRow, ...]:
    """A row a task, in the paper's order, the average last."""
    tasks = dict.fromkeys(cell.task for cell in published.cells(table=table))
    return tuple(PaperRow(label(task), {"task": task}) for task in tasks)


def _column(
    heading: str, table: str, system: str, condition: str, metric: str = "accuracy", decimals: int = 1
) -> PaperColumn:
    filters = {"table": table, "system": system, "condition": condition, "metric": metric}
    return PaperColumn(heading, filters, decimals)


def _compared(column: PaperColumn) -> PaperColumn:
    return dataclasses.replace(column, compared=True)


_EMPTY = "zero_shot;system_message=1"
_LSAT_RC = "Table 6 of the paper gives LSAT-RC 260 items; the files have 269, and the scores fit 269 only."
_AGIEVAL_N = "Table 5 of the paper gives AGIEval 3,546 items; the files have 2,546."


def _judged(reference: str, name: str) -> tuple[PaperColumn, PaperColumn, PaperColumn]:
    condition = f"reference={reference};order=reference_first"
    vicuna, orca = (
        _column(f"{heading} vs {name}", "table_7", system, condition, "percent_of_reference")
        for system, heading in (("vicuna-13b", "Vicuna-13B"), ("orca-13b", "Orca-13B"))
    )
    gain = _column(f"Gain vs {name}, %", "table_7", "orca-13b", condition, GAIN)
    return vicuna, _compared(orca), gain


TABLE_7 = PaperTable(
    "table_7",
    "Table 7: GPT-4 as judge, the candidate's total score in per cent of the reference's",
    "Prompts",
    "Table 7, one run, the reference always first; n as in Table 5",
    _rows("table_7"),
    (*_judged("chatgpt", "ChatGPT"), *_judged("gpt-4", "GPT-4")),
    (
        Note(
            "As printed; the printed averages give 15.6 (85.1 / 73.6). It is the only printed gain of the "
            "paper that its cells cannot give.",
            ((AVERAGE_LABEL, "Gain vs GPT-4, %"),),
        ),
        Note("Figure 1 prints 103 for the same prompts.", (("Vicuna prompts", "Orca-13B vs ChatGPT"),)),
        Note(
            "With the candidate first, Vicuna-13B has 84.87 here (footnote 18 of the paper).",
            (("WizardLM prompts", "Vicuna-13B vs ChatGPT"),),
        ),
        Note(
            "The paper gives the judge's scale as 0 to 10 (section 4.2.1) and as 1 to 10 (the prompt in "
            "Figure 10), and the Vicuna prompts eight categories and nine: 1 to 10 and nine hold."
        ),
    ),
)

TABLE_8 = PaperTable(
    "table_8",
    "Table 8: AGIEval, zero-shot accuracy in per cent on the English multiple-choice sets",
    "Task",
    "Table 8, n from the data files; the columns of humans, text-davinci-003, ChatGPT and GPT-4 "
    "are copied there from the AGIEval paper",
    _rows("table_8"),
    (
        _column("Human, average", "table_8", "human", "average_test_taker"),
        _column("Human, top 1 %", "table_8", "human", "top_1_percent"),
        _column("text-davinci-003", "table_8", "text-davinci-003", "zero_shot"),
        _column("ChatGPT", "table_8", "chatgpt", "zero_shot"),
        _column("GPT-4", "table_8", "gpt-4", "zero_shot"),
        _column("Vicuna-13B", "table_8", "vicuna-13b", "zero_shot"),
        _compared(_column("Orca-13B", "table_8", "orca-13b", _EMPTY)),
        _column("Gain over Vicuna, %", "table_8", "orca-13b", _EMPTY, GAIN),
    ),
    (
        Note(_LSAT_RC, (("LSAT-RC", "n"),)),
        Note(_AGIEVAL_N, ((AVERAGE_LABEL, "n"),)),
        Note(
            "Figure 2 and section 1 of the paper give 30 (64 % of ChatGPT); the cells give 29.3 (62 %).",
            ((AVERAGE_LABEL, "Vicuna-13B"),),
        ),
        Note(
            "Section 6.1 of the paper reads 2 % geometry among ChatGPT's wins and 5 % among Orca's as a "
            "weakness of Orca; the numbers say the opposite."
        ),
    ),
)

TABLE_9 = PaperTable(
    "table_9",
    "Table 9: AGIEval, Orca-13B's accuracy in per cent under three system messages",
    "Task",
    "Table 9, n from the data files",
    _rows("table_9"),
    tuple(
        _compared(_column(heading, "table_9", "orca-13b", f"zero_shot;system_message={message}"))
        for message, heading in ((1, "Message 1 (empty)"), (5, "Message 5"), (2, "Message 2"))
    ),
    (
        Note(_LSAT_RC, (("LSAT-RC", "n"),)),
        Note(_AGIEVAL_N, ((AVERAGE_LABEL, "n"),)),
        Note(
            "The caption gives the best message of each task a gap of 4.4 to ChatGPT; the cells give 4.6 "
            "(42.6 against 47.2). The best message is chosen on the test set."
        ),
    ),
)

TABLE_10 = PaperTable(
    "table_10",
    "Table 10: AGIEval, accuracy in per cent with and without ChatGPT as intermediate teacher",
    "Task",
    "Table 10, n from the data files",
    _rows("table_10"),
    (
        _compared(
            _column(
                "FLAN-5M (ChatGPT), then FLAN-1M (GPT-4)",
                "table_10",
                "orca-13b",
                f"{_EMPTY};train=flan5m_chatgpt_then_flan1m_gpt4",
            )
        ),
        _column(
            "FLAN-1M (GPT-4) only", "table_10", "orca-13b", f"{_EMPTY};train=flan1m_gpt4_only", decimals=2
        ),
    ),
    (
        Note(_LSAT_RC, (("LSAT-RC", "n"),)),
        Note(_AGIEVAL_N, ((AVERAGE_LABEL, "n"),)),
        Note("The caption spells the first set FLAM-5M; it is FLAN-5M."),
        Note("The two trainings differ in the amount of data as well as in their teachers."),
    ),
)

TABLE_11 = PaperTable(
    "table_11",
    "Table 11: Big-Bench Hard, zero-shot accuracy in per cent on the multiple-choice tasks",
    "Task",
    "Table 11, the authors' own runs; n as scored",
    _rows("table_11"),
    (
        _column("ChatGPT", "table_11", "chatgpt", "zero_shot"),
        _column("GPT-4", "table_11", "gpt-4", "zero_shot"),
        _column("Vicuna-13B", "table_11", "vicuna-13b", "zero_shot"),
        _compared(_column("Orca-13B", "table_11", "orca-13b", _EMPTY)),
        _column("Gain over Vicuna, %", "table_11", "orca-13b", _EMPTY, GAIN),
    ),
    (
        Note(
            "Table 5 of the paper gives 5,511 items, all that the 23 files have; three of them have targets "
            "that are not among their options, and the scores fit the others only.",
            (("Movie recommendation", "n"), ("Ruin names", "n"), (AVERAGE_LABEL, "n")),
        ),
        Note(
            "Vicuna-13B's average is below that of random guessing, 31.3.", ((AVERAGE_LABEL, "Vicuna-13B"),)
        ),
    ),
)

_TRUTHFULQA = "zero_shot;system_message=1;temperature=0.7;max_new_tokens=1024"
TRUTHFULQA = PaperTable(
    "truthfulqa",
    "Figures 14 and 15: TruthfulQA, four options a question, in per cent",
    "",
    "read off the bars of Figures 14 and 15, to whole items",
    (
        PaperRow("Accuracy", {"table": "fig_14", "metric": "accuracy"}),
        PaperRow("Replies not in the format", {"table": "fig_15", "metric": "format_failure_rate"}),
    ),
    tuple(
        PaperColumn(heading, {"system": system, "condition": _TRUTHFULQA}, 2, compared=system == "orca-13b")
        for system, heading in (
            ("chatgpt", "ChatGPT"),
            ("gpt-4", "GPT-4"),
            ("vicuna-13b", "Vicuna-13B"),
            ("orca-13b", "Orca-13B"),
        )
    ),
    (
        Note(
            "Figure 13 of the paper shows options with digits, section 4.2.2 takes the first capital letter: "
            "digits are asked for here, letters in AGIEval and BBH."
        ),
        Note("The paper labelled replies that broke the format by hand; runs here count them as wrong."),
    ),
)

_TOXICITY = "mean_toxicity_hatebert"
TOXIGEN = PaperTable(
    "toxigen",
    "Figures 18 and 19: ToxiGen, mean probability of toxicity (HateBERT) by group",
    "Group",
    "read off the bars of Figures 18 and 19; how many prompts there were is not said",
    _rows("fig_18a"),
    (
        _column("Vicuna-13B, toxic prompts", "fig_18a", "vicuna-13b", "toxic_prompts", _TOXICITY, 4),
        _compared(_column("Orca-13B, toxic prompts", "fig_18a", "orca-13b", "toxic_prompts", _TOXICITY, 4)),
        _column("Vicuna-13B, neutral", "fig_18b", "vicuna-13b", "neutral_prompts", _TOXICITY, 4),
        _compared(_column("Orca-13B, neutral", "fig_18b", "orca-13b", "neutral_prompts", _TOXICITY, 4)),
        _column("ChatGPT, neutral", "fig_19", "chatgpt", "neutral_prompts", _TOXICITY, 4),
        _column("GPT-4, neutral", "fig_19", "gpt-4", "neutral_prompts", _TOXICITY, 4),
    ),
    (
        Note("Averages are not in the paper: unweighted means over the 13 groups."),
        Note("Figure 19 shows Orca-13B with the same bars as Figure 18."),
    ),
    scale=1,
)

TABLES = (TABLE_7, TABLE_8, TABLE_9, TABLE_10, TABLE_11, TRUTHFULQA, TOXIGEN)
