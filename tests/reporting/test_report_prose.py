"""The Markdown of the project's programs, as pieces of the page."""

from orca_jax.reporting import report
from orca_jax.reporting.tables import markdown

TEXT = """# mini

- one
- two `x`

## Puzzles (mode `robust`)

| Family   |   n |
| -------- | --: |
| navigate | 100 |
| a\\|b     |   1 |

Accuracy in **per cent**.
And [more](https://example.org).

Said before.

![lengths](lengths.png)
"""


def test_pieces_come_in_order_and_a_table_is_named_by_its_heading():
    listed, heading, table, paragraph = report.prose(TEXT, ["Said before."])
    assert listed.split() == ["<ul>", "<li>one</li>", "<li>two", "<code>x</code></li>", "</ul>"]
    assert heading == "<h3>Puzzles (mode <code>robust</code>)</h3>"
    assert (table.title, table.header) == ("Puzzles (mode <code>robust</code>)", ["Family", "n"])
    assert table.rows == [["navigate", "100"], ["a|b", "1"]]
    assert paragraph == "<p>Accuracy in <strong>per cent</strong>.\nAnd more.</p>\n"


def test_columns_of_words_are_told_from_figures():
    (table,) = report.prose(markdown(["a", "n", "what"], [["x" * 40, "50.0 ± 1.0", "long " * 9]]))
    assert table.wordy == {2}


def test_markup_stays_text():
    (piece,) = report.prose("Some <script>alert(1)</script> & `<b>`")
    assert piece == "<p>Some &lt;script&gt;alert(1)&lt;/script&gt; &amp; <code>&lt;b&gt;</code></p>\n"
    (table,) = report.prose(markdown(["a"], [["<img src=x>"]]))
    assert table.rows == [["&lt;img src=x&gt;"]]
