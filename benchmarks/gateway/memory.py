"""The gateway's memory over a million recorded calls: it is to be the same at the end as soon after the start.

    python benchmarks/gateway/memory.py --svg docs/why/gateway-memory.svg

64 calls at once: whole answers for five seconds, streams for half a second, then a wait for the store, and so on.
Prints one JSON object; ends with 1 when memory was not flat or a call is not in the record.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gateways import OPENAI, Doorstep
from harness import Sampler, bench, say

from doorstep.cli.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH

CONNECTIONS = 64
SLICE_S = 5.0
STREAMS_S = 0.5
WARM = 0.1  # of the calls; after them memory is to stay
FLAT = 0.1  # by how much it may differ from its median


class Sample(NamedTuple):
    """What was seen at one time."""

    at_s: float
    answered: int
    gateway_mb: float
    recorder_mb: float
    backlog_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000)
    parser.add_argument("--svg", type=Path, help="file for the curve")
    arguments = parser.parse_args()
    figures, samples = run(arguments.calls)
    if arguments.svg:
        arguments.svg.write_text(drawing(samples))
    print(json.dumps(figures, indent=1))
    sys.exit(not (figures["flat"] and figures["answered"] == figures["recorded"]))


def run(calls: int) -> tuple[dict[str, object], list[Sample]]:
    samples: list[Sample] = []
    with bench() as made, tempfile.TemporaryDirectory() as peers:
        gateway = Doorstep(made, Path(peers))
        gateway.start()
        begun = time.monotonic()

        def sample() -> None:
            own, recorder = gateway.used().rss / 1e6, gateway.used_by_recorder().rss / 1e6
            backlog = gateway.health()["recorder"]["backlog_bytes"] / 1e6
            samples.append(Sample(time.monotonic() - begun, gateway.answered, own, recorder, backlog))

        errors, waited = 0.0, list[float]()
        try:
            with Sampler(sample):
                while gateway.answered < calls:
                    for answer, seconds in (("plain", SLICE_S), ("burst", STREAMS_S)):
                        said = made.load(gateway.port, gateway.request(OPENAI, answer), CONNECTIONS, seconds)
                        gateway.answered += int(said["answered"])
                        errors += said["errors"]
                    waited.append(gateway.caught_up())
                    say(f"{gateway.answered:,} calls")
                took = time.monotonic() - begun
        finally:
            gateway.stop()
        recorded = gateway.recorded()
    return {
        "answered": gateway.answered,
        "recorded": recorded,
        "errors": int(errors),
        "seconds": round(took, 1),
        "of_it_for_the_store_s": round(sum(waited), 1),
        **flatness(samples, calls),
    }, samples


def flatness(samples: Sequence[Sample], calls: int) -> dict[str, object]:
    warm = [one for one in samples if one.answered >= calls * WARM]
    figures: dict[str, object] = {}
    flat = True
    for name in ("gateway_mb", "recorder_mb"):
        values = [float(getattr(one, name)) for one in warm]
        middle = statistics.median(values)
        figures[name] = {"least": round(min(values), 1), "median": round(middle, 1), "most": round(max(values), 1)}
        flat = flat and max(values) <= middle * (1 + FLAT) and min(values) >= middle * (1 - FLAT)
    figures["backlog_mb_most"] = round(max(one.backlog_mb for one in samples), 1)
    return figures | {"flat": flat}


# Drawing

COLOURS = {"gateway": "#2a78d6", "recorder": "#c2571a"}  # both can be read on white and on black
GREY = "#808080"


def drawing(samples: Sequence[Sample]) -> str:
    """Draw both curves over the calls, as a file that needs no style sheet."""
    top = 50.0 * (1 + max(max(one.gateway_mb, one.recorder_mb) for one in samples) // 50)
    calls = samples[-1].answered
    title = f"Memory over {calls:,} recorded calls"

    def place(answered: float, megabytes: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * answered / calls
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * megabytes / top
        return f"{x:.1f},{y:.1f}"

    parts = []
    for tick in range(0, int(top) + 1, 50):
        y = place(0, tick).split(",")[1]
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="{GREY}" stroke-opacity=".3"/>'
            f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{tick}</text>'
        )
    for row, (name, colour) in enumerate(COLOURS.items()):
        points = " ".join(place(one.answered, getattr(one, f"{name}_mb")) for one in samples)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            f'<text x="{LEFT + 8 + 80 * row}" y="{HEIGHT - BOTTOM - 8}" style="fill:{colour}">{name}</text>'
        )
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{calls:,} calls</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">MB resident</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" '
        f'font-family="sans-serif" font-size="11" fill="{GREY}"><title>{title}</title>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    main()
