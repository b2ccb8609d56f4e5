"""What the pages ask a reader to type: commands, and snippets of Python and JSON, each with its line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]

BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
SHELL = ("", "bash", "sh")
PROGRAMS = (
    *("apt-get", "bash", "curl", "docker", "export", "gcloud", "jupyter", "kubectl", "lm_eval", "make"),
    *("mkdocs", "pip", "pip-audit", "playwright", "python", "sbatch", "source", "launch/[a-z_.]+"),
)
INLINE = re.compile(rf"`(?:time )?(?P<text>(?:{'|'.join(PROGRAMS)}) [^`\n]+(?:\n[^`\n]+)?)`")
INDENTED = re.compile(r"^    (?P<text>python .+)$", re.M)


class Said(NamedTuple):
    """A command, or a snippet in `language`, and where it stands."""

    page: str
    line: int
    text: str
    language: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def is_drawing(block: str) -> bool:
    """Whether a block shows how data move, or a folder's tree."""
    return "──►" in block or block.startswith("WORKDIR/\n")


def said(page: Path) -> list[Said]:
    """All commands and snippets of a page, in its order.

    Continued lines are one, comments are left out, and a variable that the page sets is replaced.
    """
    text = page.read_text(encoding="utf-8")

    def line(offset: int) -> int:
        return text.count("\n", 0, offset) + 1

    found = []
    for block in BLOCK.finditer(text):
        language, inner = block["language"], block["text"]
        if language in SHELL and inner.startswith("{"):
            language = "json"
        if language in ("python", "json"):
            found.append(Said(page.name, line(block.start()) + 1, inner, language))
        elif language in SHELL and not is_drawing(inner):
            # A continued command ends where it ends, but is said to stand where it begins.
            for one in re.finditer(r"(?:.*\\\n)*.+", inner):
                command = re.sub(r"\s+# .*", "", re.sub(r"\s*\\\n\s*", " ", one[0])).strip()
                found.append(Said(page.name, line(block.start("text") + one.start()), command))
    prose = BLOCK.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text)
    for pattern in (INLINE, INDENTED):
        for one in pattern.finditer(prose):
            found.append(Said(page.name, line(one.start()), " ".join(one["text"].split())))
    return list(_replaced(sorted(found, key=lambda one: one.line)))


def _replaced(found: list[Said]) -> Iterator[Said]:
    """What was found, less the lines that set a variable of the shell."""
    values: dict[str, str] = {}
    for one in found:
        if given := re.fullmatch(r'([A-Z]+)="(.*)"', one.text):
            values[f"${given[1]}"] = given[2]
            continue
        text = one.text
        for name, value in values.items():
            text = text.replace(name, value)
        yield one._replace(text=text)


def commands(page: Path) -> list[Said]:
    return [one for one in said(page) if not one.language]


def snippets(page: Path) -> list[Said]:
    return [one for one in said(page) if one.language]
