"""What the site does otherwise than a reader of the repository sees it; mkdocs.yml names this file."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A page whose links out of docs/ are their text alone: those files are not on the site."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"\1", markdown)
