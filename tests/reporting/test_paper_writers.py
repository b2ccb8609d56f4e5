"""The paper's tables and figures as files, in every format."""

import csv
import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from orca_jax.reporting import charts, paper, paper_writers
from orca_jax.reporting.paper_tables import Page
from orca_jax.reporting.paper_writers import Drawing
from orca_jax.reporting.tables import Table, escaped


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of all tables without runs, and of one figure."""
    out = tmp_path_factory.mktemp("paper")
    chart = charts.lines({"a title": [(0, 1.0), (1, 2.0)]}, caption="", y="a title")
    drawing = Drawing("figure_0", "Figure 0: none", chart, ("A note.",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_writers, "drawings", lambda _: [drawing])
        paper_writers.write_paper([], out)
    return out


def test_every_table_is_written_in_every_format_and_listed(written):
    index = (written / "README.md").read_text()
    for table in paper.TABLES:
        assert f"- {table.title}:" in index
        for suffix in ("md", "tex", "csv", "parquet"):
            assert (written / f"{table.name}.{suffix}").stat().st_size > 100
            assert f"({table.name}.{suffix})" in index
    assert "No run was given: published cells only." in index
    assert {path.name for path in written.iterdir()} == {"README.md", *re.findall(r"\((\w+\.\w+)\)", index)}


def test_figures_are_pictures_whose_text_is_text(written):
    assert (written / "figure_0.png").read_bytes().startswith(b"\x89PNG")
    assert ">a title<" in (written / "figure_0.svg").read_text()
    assert "![Figure 0: none](figure_0.png)\n\nA note." in (written / "README.md").read_text()


def test_csv_and_parquet_hold_the_same_typed_records(written):
    rows = list(csv.DictReader(io.StringIO((written / "table_11.csv").read_text())))
    table = parquet.read_table(written / "table_11.parquet").to_pylist()
    assert len(rows) == len(table) == 24 * 5
    assert list(rows[0]) == list(table[0])
    for row, typed in zip(rows, table):
        assert {name: "" if value is None else str(value) for name, value in typed.items()} == row
    gpt = next(row for row in table if row["system"] == "gpt-4" and row["task"] == "snarks")
    shown = (gpt["n"], gpt["printed"], gpt["unit"], gpt["source"])
    assert shown == (178, 87.6, "percent", "table 11, printed")


def environments(text):
    """Checks that every \\begin has its \\end, and that braces close."""
    open_ones = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert not open_ones
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")


@pytest.mark.parametrize("table", paper.TABLES, ids=lambda table: table.name)
def test_latex_is_whole_and_every_row_fills_its_columns(written, table):
    text = (written / f"{table.name}.tex").read_text()
    environments(text)
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + len(table.rows)
    assert {line.count(" & ") for line in rows} == {len(columns) - 1}
    assert not re.search(r"[^\x00-\x7f]", text)  # every sign has its command


def test_latex_escapes():
    assert escaped("50% of a_b & #1 {x} ~^\\ $") == (
        r"50\% of a\_b \& \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$"
    )
    assert escaped("-1.5 ± 2.8") == r"$-$1.5 $\pm$ 2.8"
    assert escaped("-10.6 to +2.0, 1e-3") == "$-$10.6 to $+$2.0, 1e-3"
    assert escaped("13.5ᵃ") == r"13.5\textsuperscript{a}"
    assert escaped("LSAT-RC") == "LSAT-RC"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab-+1&%$#_{}~^\\<>|± "), max_size=8), min_size=2, max_size=2))
def test_no_cell_breaks_a_latex_row(cells):
    page = Page(paper.TABLE_7, (Table(["x", "y"], [cells], "t"),), (), ())
    text = paper_writers.latex(page)
    environments(text)
    (row,) = re.findall(r"\\midrule\n(.*) \\\\\n\\bottomrule", text)
    assert len(re.findall(r"(?<!\\)&", row)) == 1
