"""docs/config.md has every key of config.py, and every key has a comment."""

import runpy


def test_the_page_is_written_from_the_code(repo):
    made = runpy.run_path(str(repo / "docs/config_page.py"))["page"]()
    assert made == (repo / "docs/config.md").read_text(encoding="utf-8"), "run python docs/config_page.py"


def test_every_key_has_a_meaning(repo):
    rows = [line for line in (repo / "docs/config.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("| |")] == []
