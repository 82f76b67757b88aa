"""What commands print: results on stdout, all else on stderr; colour and bars only on a terminal.

``--json`` puts exactly one JSON object on stdout.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from doorstep.types import Split

SHOWN = 3  # of a list of problems
LINES_PER_STAGE = 5  # where there is no terminal to draw bars on

err = Console(stderr=True, highlight=False, emoji=False)  # run ids hold :train:, which is no picture
out = Console(highlight=False, emoji=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]


def emit(result: Any) -> None:
    """Print the one JSON object of ``--json``."""
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    sys.stdout.flush()


def say(text: str, style: str | None = None) -> None:
    """Tell the person what happens, on stderr. The text is no markup: it may come from anywhere."""
    err.print(text, style=style, markup=False, soft_wrap=True)


def show_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table on stdout; the first column is left and stays whole, the others right. Without any name no head."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    out.print(table)


class Bars:
    """Progress bars of an improvement: one per evaluation and per stage, with the live figures beside it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stages: dict[str, tuple[TaskID, list[float]]] = {}

    def evaluation(self, name: str, split: Split) -> Any:
        """Return the progress function of an evaluation."""
        where = "held-out" if split is Split.HELD_OUT else split.value
        task = self._progress.add_task(f"measure {name} on {where}", total=None, figures="")
        return lambda done, total: self._progress.update(task, completed=done, total=total)

    def step(self, stage: str, step: int, steps: int, metrics: dict[str, float]) -> None:
        """Move the bar of a stage; beside it the curve of its main figure so far."""
        if stage not in self._stages:
            self._stages[stage] = self._progress.add_task(f"train {stage}", total=steps, figures=""), []
        task, curve = self._stages[stage]
        name = "loss" if "loss" in metrics else "exact"
        curve.append(metrics[name])
        figures = f"{name} {metrics[name]:.3f} {sparkline(curve)}"
        self._progress.update(task, completed=step, figures=figures)
        if not err.is_terminal and step % max(1, steps // LINES_PER_STAGE) == 0:
            say(f"     train {stage} {step}/{steps}  {figures}")

    def rung(self, rung: Any) -> None:
        """Print a measured rung."""
        result = rung.evaluation
        interval = f"[{result.low:.1%} … {result.high:.1%}]"
        say(f"     {rung.name}: {result.score:.1%} exactly right {interval} on {result.n} held-out records")

    def left_out(self, records: Sequence[str]) -> None:
        """Tell which training records cannot be used."""
        say(f"     {len(records)} training records cannot be used and are left out:")
        for record in records[:SHOWN]:
            say(f"       {record}")

    def bar(self, text: str) -> Any:
        """Return the progress function of any other long work."""
        task = self._progress.add_task(text, total=None, figures="")
        return lambda done, total: self._progress.update(task, completed=done, total=total)


@contextmanager
def bars() -> Iterator[Bars]:
    """Show progress bars on stderr while the block runs."""
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        yield Bars(progress)


def sparkline(values: list[float], width: int = 24) -> str:
    """Draw the latest values as one line of block characters, scaled to their own range."""
    marks = "▁▂▃▄▅▆▇█"
    stride = max(1, len(values) // width)
    shown = values[::stride][-width:]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(marks[round((value - low) / span * (len(marks) - 1))] for value in shown)
