"""The ``doorstep`` command: its options, its error messages, its exit codes.

Exit 0 on success, 2 when the request cannot work as it stands, 1 on any other failure, 130 when stopped by Ctrl-C.
"""

import sys

import typer

from doorstep import __version__
from doorstep.cli import (
    conformance,
    costs,
    customers,
    deciding,
    demo,
    exporting,
    importing,
    improving,
    keys,
    output,
    providers,
    reporting,
    serving,
    training,
    working,
)
from doorstep.errors import DoorstepError, UsageError

STOPPED = 130  # what typer makes of Ctrl-C
EXAMPLES = """Examples:

doorstep demo: the whole loop on a shipped example, in a few minutes

doorstep init invoices --from records.jsonl, then doorstep improve invoices, then doorstep promote invoices

doorstep run invoices inbox/ --out invoices.csv

doorstep serve: an OpenAI address for every client"""

app = typer.Typer(
    name="doorstep",
    help="Doorstep, the last mile of AI: from a company's own records to its own model with the traffic.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"doorstep {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Doorstep, the last mile of AI."""


for module in (
    demo,
    working,
    improving,
    deciding,
    reporting,
    serving,
    training,
    providers,
    keys,
    customers,
    costs,
    importing,
    exporting,
    conformance,
):
    module.register(app)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except UsageError as error:
        _fail(str(error), 2)
    except DoorstepError as error:
        _fail(str(error), 1)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("doorstep"):
            raise
        _fail(f"this needs {error.name}, which is not installed. Install all parts: pip install 'doorstep[all]'", 2)
    except SystemExit as end:
        if end.code == STOPPED:
            output.say("Stopped. What was done is kept; the same command goes on (improve: with --resume).")
        raise


def _fail(message: str, code: int) -> None:
    output.say(f"error: {message}", style="red")
    sys.exit(code)
