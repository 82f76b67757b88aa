"""The page of what was found: each runner writes its own part, between two marks."""

from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "reference-compatibility.md"
END = "<!-- end -->"


def with_part(text: str, author: str, part: str) -> str:
    """Return the page with what this runner of ``compat/`` found between its marks."""
    begin = f"<!-- begin: written by compat/{author} -->"
    before, mark, rest = text.partition(begin)
    assert mark, f"{PAGE} has no {begin}"
    return f"{before}{begin}\n\n{part}\n{END}{rest.partition(END)[2]}"
