"""``doorstep report``: what an improvement brought and what it cost, on the terminal, as JSON and as one HTML file."""

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from doorstep import __version__, config
from doorstep.cli import charts, output
from doorstep.cli.improving import last_outcome
from doorstep.cli.output import Json, say
from doorstep.cli.report import Report, build
from doorstep.cli.working import Data
from doorstep.improve.plan import write_atomic
from doorstep.store import Store
from doorstep.value.breakeven import BreakEven

PAGE = "report.html.j2"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: doorstep report orders --out report.html")(report)


def report(
    name: Annotated[str, typer.Argument(help="The workflow.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page, one file; its figures go beside it as .json. Default: in the data folder."),
    ] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Report the last improvement: quality with intervals, what it cost, what it saves, and the decision."""
    settings = config.load(overrides={"data": data})
    job, outcome = last_outcome(settings, name)
    page = out or settings.data / f"{name}-report.html"
    with Store.open(settings.record) as store:
        result = build(store, settings, job, outcome)
    write_report(result, page)
    if as_json:
        output.emit(result)
        return
    show_report(result)
    say(f"Written: {page} and {page.with_suffix('.json').name}")


def write_report(result: Report, page: Path) -> None:
    """Write the page and, beside it, the same figures as JSON."""
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, render(result).encode())
    write_atomic(page.with_suffix(".json"), msgspec.json.format(msgspec.json.encode(result), indent=2))


def render(result: Report) -> str:
    """Return the report as one HTML file that fetches nothing."""
    import jinja2  # 6 MB, which only a report needs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {"percent": percent, "usd": usd, "plain": _plain, "paid_back": paid_back}
    environment.filters |= filters
    scores = [(stage.name, stage.score, stage.low, stage.high) for stage in result.stages]
    curves = [
        charts.line(curve.points, f"{curve.stage}: {curve.figure} per step", percent=curve.figure == "exact")
        for curve in result.curves
    ]
    quality = charts.intervals(scores, "exactly right on held-out records, with 95 % intervals")
    return environment.get_template(PAGE).render(r=result, quality=quality, curves=curves, version=__version__)


def show_report(result: Report) -> None:
    """Print the closing tables."""
    output.show_table(
        f"{result.workflow}: exactly right on {result.held_out} held-out records",
        ["variant", "score", "95 % interval", "training", "1,000 inputs", "p50"],
        [
            [
                stage.name,
                percent(stage.score),
                f"{percent(stage.low)} … {percent(stage.high)}",
                f"{stage.training_seconds:.0f} s" if stage.training_seconds else "",
                usd(stage.cost_per_1000_usd),
                f"{stage.p50_ms:.0f} ms",
            ]
            for stage in result.stages
        ],
    )
    costs = result.cost_per_1000
    rows = [["own model (its CPU time)", usd(costs.own_usd), ""]]
    rows += [
        [f"{model} (list price)", usd(price), paid_back(result.break_even[model])]
        for model, price in costs.list_price_usd.items()
    ]
    output.show_table("What 1,000 inputs cost: the same tokens", ["model", "cost", "training is paid back"], rows)
    p_value = result.decision["p_value"]
    output.show_table(
        "Decision and training",
        ["", ""],
        [
            ["the gate", f"{result.decision['verdict']} {result.decision['candidate']}"],
            ["p", "not known" if p_value is None else f"{p_value:.2g}"],
            ["decision", result.decision["id"]],
            ["training", f"{result.training.cpu_seconds:.0f} CPU seconds, {usd(result.training.usd)}"],
        ],
    )


def percent(value: float) -> str:
    """Write a share."""
    return f"{value:.1%}"


def usd(value: float | None) -> str:
    """Write money: two figures that count where it is less than a cent."""
    if value is None:
        return "not known"
    return f"${value:.2f}" if value >= 0.1 or value == 0 else f"${value:.2g}" if value >= 1e-4 else f"${value:.6f}"


def paid_back(result: BreakEven) -> str:
    """Say when training is paid back."""
    return result.why or "" if result.runs is None else f"after {result.runs:,} inputs"


def _plain(value: Any) -> str:
    """Show an object a field a line and a list an entry a line, all below as JSON."""
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_part(part)}" for key, part in value.items())
    return _part(value)


def _part(value: Any) -> str:
    if isinstance(value, list):
        return "".join("\n  " + json.dumps(entry, ensure_ascii=False) for entry in value) or "[]"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
