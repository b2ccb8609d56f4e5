"""The pages as they are rendered: rows of tables are whole, and links of the web are plain addresses."""

import re

import pytest

from tests.docs import pages
from tests.docs.pages import NAMES, PAGES

RULE = re.compile(r"\|(?: ?:?-+:? ?\|)+")


def cells(line):
    return re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`", "``", line.strip()))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_tables_rows_have_the_cells_of_its_head(page):
    blank = pages.BLOCK.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), page.read_text(encoding="utf-8"))
    lines = blank.splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("|"):
            continue
        first = number
        while lines[first - 1].startswith("|"):
            first -= 1
        place = f"{page.name}:{number + 1}: {line}"
        # A row that goes on in the next line leaves what follows it outside the table.
        assert line.rstrip().endswith("|"), place
        assert RULE.fullmatch(lines[first + 1].strip()), place
        assert len(cells(line)) == len(cells(lines[first])), place


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_of_the_web_are_https(page):
    for target in re.findall(r"\]\((\w+:[^)]*)\)", page.read_text(encoding="utf-8")):
        assert re.fullmatch(r"https://[\w.-]+(/[^\s<>]*)?", target), target
