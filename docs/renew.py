"""Write anew what the pages have from the code: the commands in ``docs/reference.md``, and ``docs/openapi.json``.

    python docs/renew.py

Everything in the reference outside the two marks is written by hand.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from doorstep.cli.app import app
from doorstep.gateway import description

PAGE = Path(__file__).parent / "reference.md"
DESCRIPTION = Path(__file__).parent / "openapi.json"
BEGIN, END = "<!-- commands: written by docs/renew.py -->\n", "<!-- end of commands -->"


def renewed(page: str) -> str:
    """Return the page with the section of commands as the command line is now."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + "\n\n".join(_section(*each) for each in commands()) + "\n\n" + END + after


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        children = getattr(command, "commands", {})
        yield from ((f"{name} {child}", inner) for child, inner in children.items())
        if not children:
            yield name, command


def _section(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if not _is_option(parameter)]
    options = [parameter for parameter in command.params if _is_option(parameter)]
    usage = " ".join(["doorstep", name, *map(_argument, arguments), "[OPTIONS]"])
    rows = [f"| `{_argument(parameter)}` | {parameter.help} |" for parameter in arguments]
    rows += [f"| `{_option(parameter)}` | {parameter.help}{_default(parameter)} |" for parameter in options]
    table = "\n".join(["| | |", "|---|---|", *rows])
    example, *note = command.epilog.removeprefix("Example: ").split("    ")
    block = f"```console\n{example}{'  # ' if note else ''}{' '.join(note)}\n```"
    return "\n\n".join([f"### doorstep {name}", f"`{usage}`", command.help, table, block])


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("-"))


def _argument(parameter: Any) -> str:
    shown = parameter.name.upper() + ("…" if parameter.nargs == -1 else "")
    return shown if parameter.required else f"[{shown}]"


def _option(parameter: Any) -> str:
    if parameter.is_flag:
        return str(parameter.opts[0])
    kind = getattr(parameter.type_descriptor.annotation, "__name__", "str")
    value = {"int": "N", "Path": "FILE"}.get(kind, "TEXT")
    return f"{parameter.opts[0]} {value}"


def _default(parameter: Any) -> str:
    if parameter.required:
        return " Required."
    if parameter.multiple:
        return " May be given more than once."
    return "" if parameter.is_flag or parameter.default is None else f" Default: `{parameter.default}`."


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text("utf-8")), "utf-8")
    DESCRIPTION.write_bytes(description.written())
