"""Commands in the pages can be typed as they stand."""

import re
import runpy
import shlex

import pytest
import typer
from pages import PAGES, REFERENCE, ROOT, blocks, console_lines, prose

from doorstep.cli.app import app
from doorstep.gateway.description import written

RENEW = "docs/renew.py"
COMMANDS = typer.main.get_command(app).commands


def test_the_reference_has_every_command_as_it_is_now():
    renewed = runpy.run_path(str(ROOT / RENEW))["renewed"]
    page = REFERENCE.read_text("utf-8")
    assert page == renewed(page), f"the commands have changed; write them anew: python {RENEW}"


def test_the_file_of_the_description_is_as_it_is_served():
    assert (ROOT / "docs" / "openapi.json").read_bytes() == written(), f"write it anew: python {RENEW}"


@pytest.mark.parametrize("line", console_lines(), ids=lambda line: f"{line.page}: {line.text}")
def test_a_line_of_a_console_block_can_be_typed(line):
    first, *words = shlex.split(line.text)
    if first == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    elif first.removeprefix(".venv/bin/") == "python":
        assert any((ROOT / words[0] / name).is_file() for name in ("", "__main__.py"))
    else:
        assert first == "doorstep"
        _parse(words)


def _parse(words: list[str]) -> None:
    """Parse as the command line does; an unknown or missing word raises."""
    name, *rest = words
    command = COMMANDS[name]
    while hasattr(command, "commands"):
        name, *rest = rest
        command = command.commands[name]
    command.make_context(name, rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_command_that_the_text_names_exists(page):
    named = re.findall(r"`doorstep ([a-z]\w*)(?: ([a-z]\w*))?", prose(page))
    for name, child in named:
        assert name in COMMANDS
        assert not child or child in getattr(COMMANDS[name], "commands", {child})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_in_a_page_compiles(page):
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")
