"""The Markdown of the project's programs, read back."""

from hypothesis import given, settings
from hypothesis import strategies as st

from orca_jax.reporting import report_sources
from orca_jax.reporting.tables import markdown

TEXT = """# mini

- one
- two `x`

## Puzzles (mode `robust`)

| Family   |   n |
| -------- | --: |
| navigate | 100 |

Accuracy in **per cent**.
And more.

![lengths](lengths.png)
"""
cells = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=12).filter(
    lambda text: not set(text) & set("`*[]\\\x85")
)


def test_pieces_come_in_order_and_a_table_is_named_by_its_heading():
    found = list(report_sources.blocks(TEXT))
    assert [block.kind for block in found] == ["heading", "list", "heading", "table", "paragraph"]
    assert found[1].entries == ("one", "two <code>x</code>")
    table = found[3].table
    assert (table.caption, table.header, table.rows) == (
        "Puzzles (mode <code>robust</code>)", ["Family", "n"], [["navigate", "100"]]
    )  # fmt: skip
    assert found[4].text == "Accuracy in <strong>per cent</strong>. And more."


def test_columns_of_words_are_told_from_figures():
    (block,) = report_sources.blocks(markdown(["a", "n", "what"], [["x" * 40, "50.0 ± 1.0", "long " * 9]]))
    assert block.table.wordy == {2}


def test_markup_stays_text():
    (block,) = report_sources.blocks("<script>alert(1)</script> & `<b>`")
    assert block.text == "&lt;script&gt;alert(1)&lt;/script&gt; &amp; <code>&lt;b&gt;</code>"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=4))
def test_tables_are_read_as_they_were_written(rows):
    (block,) = report_sources.blocks(markdown(["a", "b", "c"], rows))
    assert [[cell.unescape() for cell in row] for row in block.table.rows] == [
        [cell.strip() for cell in row] for row in rows
    ]
