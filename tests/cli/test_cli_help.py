"""The command line explains itself, and says what to do when something cannot work."""

import subprocess
import sys

import pytest
import typer

from doorstep.cli.app import app


def _commands() -> list[tuple[str, ...]]:
    root = typer.main.get_command(app)
    names = []
    for name, command in root.commands.items():
        inner = getattr(command, "commands", {})
        names += [(name, child) for child in inner] or [(name,)]
    return names


@pytest.mark.parametrize("command", _commands(), ids=" ".join)
def test_the_help_of_every_command_has_an_example(doorstep, command):
    ended = doorstep(*command, "--help")
    assert ended.code == 0
    assert f"Example: doorstep {' '.join(command)}" in " ".join(ended.out.split())


def test_bare_doorstep_shows_the_help(doorstep):
    assert "doorstep demo" in doorstep().out


def test_the_version(doorstep):
    assert doorstep("--version").out.startswith("doorstep 0.")


@pytest.mark.parametrize(
    ("arguments", "help_in_it"),
    [
        (["run", "nothing", "x.eml"], "doorstep init nothing"),
        (["eval", "nothing"], "doorstep init nothing"),
        (["improve"], "doorstep improve NAME"),
        (["improve", "--resume"], "Start one"),
        (["promote", "nothing"], "doorstep improve nothing"),
        (["report", "nothing"], "doorstep improve nothing"),
        (["rollback", "nothing", "--why", "x"], "no earlier route"),
        (["decision", "verify", "decision_0"], "no decision 'decision_0'"),
        (["demo", "--workflow", "nothing"], "no example 'nothing'"),
        (["serve", "--host", "203.0.113.1", "--model", ""], "cannot listen on 203.0.113.1"),
    ],
)
def test_what_cannot_work_is_said_in_one_line_with_what_to_do(doorstep, arguments, help_in_it):
    ended = doorstep(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert help_in_it in ended.err


def test_no_colour_where_there_is_no_terminal(doorstep):
    assert "\x1b" not in doorstep("eval", "nothing").err


def test_the_package_and_the_command_load_no_torch_and_no_training_client():
    heavy = {"torch", "tinker", "transformers", "genai_prices"}
    code = f"import sys, doorstep.cli; print(sorted({heavy} & sys.modules.keys()))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_part_that_is_not_installed_is_named_with_how_to_install_it(doorstep, records):
    doorstep("init", "crates", "--from", str(records))
    code = "import sys; sys.modules['tinker'] = None; from doorstep.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "improve", "crates"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "needs tinker" in ended.stderr
    assert "pip install 'doorstep[all]'" in ended.stderr
