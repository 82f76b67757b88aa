"""The pages of the documentation, and what stands in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")])
REFERENCE = ROOT / "docs" / "reference.md"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Line(NamedTuple):
    """A line of a console block."""

    page: str
    text: str


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return [text for kind, text in _FENCE.findall(page.read_text("utf-8")) if kind == language]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def without_comment(line: str) -> str:
    return re.sub(r"\s+# .*", "", line)


def console_lines() -> list[Line]:
    """Return each command of all console blocks, without its comment."""
    return [
        Line(str(page.relative_to(ROOT)), without_comment(text))
        for page in PAGES
        for block in blocks(page, "console")
        for text in block.splitlines()
        if text.strip()
    ]


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of all table rows."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def section(page: Path, heading: str) -> str:
    """Return what stands under a heading, down to the next one of the same level."""
    level = heading.split(" ", maxsplit=1)[0]
    _, _, rest = page.read_text("utf-8").partition(f"\n{heading}\n")
    assert rest, f"{page.name} has no '{heading}'"
    return re.split(rf"^{level} ", rest, flags=re.MULTILINE)[0]
