"""The README shows the tree as it is, the Chinese one keeps step, and the words and layers are those of the code."""

import re
import tomllib

import pytest
from pages import PAGES, ROOT, blocks, prose, without_comment

from doorstep.types import RECORDS

README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"


def _tree(page) -> list[str]:
    """Return the path of each line of the captioned tree."""
    lines = next(block for block in blocks(page, "") if "src/doorstep/" in block).splitlines()
    above: list[str] = []
    paths = []
    for line in lines:
        name = line.split()[0]
        above = [*above[: (len(line) - len(line.lstrip())) // 2], name]
        paths.append("".join(above))
    return paths


def test_everything_in_the_tree_exists():
    assert [path for path in _tree(README) if not (ROOT / path).exists()] == []


def test_every_package_and_every_top_folder_is_in_the_tree():
    package = ROOT / "src" / "doorstep"
    found = [*package.glob("*/__init__.py"), *package.glob("gateway/*/__init__.py")]
    parts = {f"{path.parent.relative_to(ROOT)}/" for path in found}
    modules = {f"src/doorstep/{path.name}" for path in package.glob("*.py") if not path.name.startswith("__")}
    examples = {f"examples/{path.parent.name}/" for path in ROOT.glob("examples/*/workflow.py")}
    assert parts | modules | examples <= set(_tree(README))


def test_each_line_of_the_tree_has_a_caption():
    assert all(len(line.split()) > 1 for line in blocks(README, "")[-1].splitlines()[1:] if line != "examples/")


def _commands(page) -> list[str]:
    return [without_comment(line) for text in blocks(page, "console") for line in text.splitlines()]


def test_the_chinese_readme_has_the_same_commands_code_and_tree():
    assert _commands(CHINESE) == _commands(README)
    assert blocks(CHINESE, "python") == blocks(README, "python")
    assert blocks(CHINESE, "")[0] == blocks(README, "")[0]
    assert _tree(CHINESE) == _tree(README)


def _outline(page) -> list[str]:
    return re.findall(r"^(#+ |\d\. \*\*|<!-- \w+ -->)", prose(page), re.MULTILINE)


def test_the_chinese_readme_has_the_same_parts():
    assert _outline(CHINESE) == _outline(README)


def _links(page) -> set[str]:
    return set(re.findall(r"\]\(([^)]+)\)", prose(page)))


def test_the_chinese_readme_has_the_same_links():
    assert _links(CHINESE) - {"README.md"} == _links(README) - {"README.zh.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\((?!https://)([^)]+)\)", prose(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def _anchors(page) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_glossary_has_every_kind_of_record():
    words = re.findall(r"\*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text("utf-8"))
    known = {word for entry in words for word in re.split(r", | / ", entry)}
    kinds = {re.sub(r"(?<!^)(?=[A-Z])", " ", record.__name__).lower() for record in RECORDS}
    assert kinds <= known


def test_the_layers_of_the_architecture_are_those_that_the_linter_holds():
    drawn = next(block for block in blocks(ROOT / "docs" / "why" / "architecture.md", "") if "cli" in block)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    held = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [re.split(r" {3,}", line)[0] for line in drawn.splitlines()] == held
