"""The gateway beside its peers, each on one core: calls and streams per second, CPU time, and the time that it adds.

    python benchmarks/gateway/run.py --install-peers     # once; into ~/.cache/doorstep-bench
    python benchmarks/gateway/run.py --rounds 5 --json figures.json
    python benchmarks/gateway/run.py --only Doorstep --seconds 1

Prints Markdown tables. All gateways are started before, and each is measured in every round while the others are
stopped. CPU time and rates are the best round's, everything else is the median of the rounds; times added are over the
direct line of the same round. A peer that is not installed, or does not start, is named. Linux with two cores, a C
compiler and, for the peers, PyPI and npm.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateways import ANTHROPIC, GATEWAYS, OPENAI, PEERS, Direct, Doorstep, Gateway
from harness import bench, say

PEERS_FOLDER = Path("~/.cache/doorstep-bench").expanduser()
DIALECTS = {OPENAI: "OpenAI chat", ANTHROPIC: "Anthropic messages"}
IMPORTS = 5
CPU, RATES = ("cpu_us", "recorder_cpu_us"), ("per_second", "chunks_per_second")
Round = dict[str, float]


@dataclass(frozen=True)
class Cell:
    """One thing that is measured: how upstream answers, to how many at once."""

    answer: str
    connections: int

    @property
    def name(self) -> str:
        return f"{self.answer} c{self.connections}"


PLAIN = [Cell("plain", count) for count in (1, 16, 64)]
PACED = [Cell("paced", count) for count in (1, 16, 64)]
BURST = Cell("burst", 16)
CELLS = [*PLAIN, *PACED, BURST]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of gateways, with commas between them")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--peers", type=Path, default=PEERS_FOLDER, help="folder where the peers are installed")
    parser.add_argument("--install-peers", action="store_true", help="install them there, and do nothing else")
    arguments = parser.parse_args()
    wanted = chosen(arguments.only)
    with bench() as made:
        gateways = [kind(made, arguments.peers) for kind in wanted]
        if arguments.install_peers:
            for gateway in gateways:
                if isinstance(gateway, PEERS):
                    say(f"installing {gateway.name} into {gateway.home}")
                    gateway.install_it()
            return
        figures = measure(gateways, arguments.seconds, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    print("\n\n".join(tables(figures)))


def chosen(only: str | None) -> list[type[Gateway]]:
    names = {kind.name.lower(): kind for kind in GATEWAYS}
    if only is None:
        return list(names.values())
    asked = [name.strip().lower() for name in only.split(",")]
    if unknown := set(asked) - set(names):
        sys.exit(f"No gateway is called {', '.join(sorted(unknown))}. There are: {', '.join(names)}.")
    return [Direct, *(names[name] for name in asked if name != Direct.name)]


# Measuring


def measure(gateways: Sequence[Gateway], seconds: float, rounds: int) -> dict[str, Any]:
    measured: dict[str, Measured] = {}
    load_before = os.getloadavg()[0]
    with ExitStack() as stack:
        for gateway in gateways:
            measured[gateway.name] = Measured(gateway)
            measured[gateway.name].start()
            stack.callback(gateway.stop)
            gateway.pause()
        running = [one for one in measured.values() if not one.missing]
        for number in range(rounds):
            for one in running[number % len(running) :] + running[: number % len(running)]:
                say(f"round {number + 1} of {rounds}: {one.gateway.name}")
                one.round(seconds)
        for one in running:
            one.finish()
    direct = measured[Direct.name]
    return {
        "machine": machine(),
        "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load_average": [load_before, os.getloadavg()[0]],
        "seconds": seconds,
        "rounds": rounds,
        "import_s": import_s(),
        "gateways": {name: one.figures(direct) for name, one in measured.items()},
    }


class Measured:
    """A gateway and what was measured of it, round by round."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.missing = ""
        self.rounds: dict[tuple[str, str], list[Round]] = defaultdict(list)
        self._idle = self._idle_recorder = self._most = self._most_recorder = 0
        self._caught_up: list[float] = []
        self._record: dict[str, int] = {}

    def start(self) -> None:
        gateway = self.gateway
        if not gateway.ready():
            self.missing = "not installed; --install-peers does it"
        else:
            say(f"starting {gateway.name}")
            try:
                gateway.start()
            except RuntimeError as error:
                self.missing = "did not start"
                say(str(error))
            time.sleep(1)
            self._idle, self._idle_recorder = gateway.used().rss, gateway.used_by_recorder().rss

    def round(self, seconds: float) -> None:
        self.gateway.go_on()
        for path in self.gateway.speaks:
            for cell in CELLS:
                self.rounds[path, cell.name].append(self._cell(path, cell, seconds))
        self.gateway.pause()

    def _cell(self, path: str, cell: Cell, seconds: float) -> Round:
        gateway = self.gateway
        request = gateway.request(path, cell.answer)
        self._load(request, cell, min(0.5, seconds))  # to warm up
        gateway.caught_up()
        before, recorder_before = gateway.used(), gateway.used_by_recorder()
        said = self._load(request, cell, seconds)
        used = gateway.used().since(before)
        self._caught_up.append(gateway.caught_up())
        recorder = gateway.used_by_recorder().since(recorder_before)
        each = said["chunks" if said["chunks"] else "answered"] or 1  # a stream's cost is counted by the chunk
        return {
            **said,
            "cpu_us": used.cpu_ns / each / 1000,
            "recorder_cpu_us": recorder.cpu_ns / each / 1000,
            "waited": used.waited_ns / max(1, used.waited_ns + used.cpu_ns),
            "chunks_per_second": said["chunks"] / seconds,
        }

    def _load(self, request: bytes, cell: Cell, seconds: float) -> Round:
        gateway = self.gateway

        def watch() -> None:
            self._most = max(self._most, gateway.used().rss)
            self._most_recorder = max(self._most_recorder, gateway.used_by_recorder().rss)

        said = gateway.bench.load(gateway.port, request, cell.connections, seconds, watch)
        gateway.answered += int(said["answered"])
        return said

    def finish(self) -> None:
        self.gateway.stop()
        if isinstance(self.gateway, Doorstep):
            self._record = {"answered": self.gateway.answered, "recorded": self.gateway.recorded()}

    def figures(self, direct: "Measured") -> dict[str, Any]:
        if self.missing:
            return {"missing": self.missing}
        gateway = self.gateway
        return {
            "version": gateway.version(),
            "packages": gateway.packages(),
            "records": gateway.records,
            "start_s": gateway.start_s,
            "rss_mb": {
                "idle": self._idle / 1e6,
                "load": self._most / 1e6,
                "recorder_idle": self._idle_recorder / 1e6,
                "recorder_load": self._most_recorder / 1e6,
            },
            "record": self._record,
            "caught_up_s": max(self._caught_up),
            "cells": {
                path: {
                    cell.name: summary(self.rounds[path, cell.name], direct.rounds[path, cell.name]) for cell in CELLS
                }
                for path in gateway.speaks
            },
        }


def summary(rounds: Sequence[Round], direct: Sequence[Round]) -> Round:
    """Return what did not depend on luck: the best round's CPU time and rates, and the medians of the rest.

    What else the machine does only ever makes CPU time longer and rates lower.
    """
    best = {name: min(one[name] for one in rounds) for name in CPU}
    best |= {name: max(one[name] for one in rounds) for name in RATES}
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0] if name not in best}
    added = {
        f"added_{name}": statistics.median(one[name] - line[name] for one, line in zip(rounds, direct, strict=True))
        for name in rounds[0]
        if name.endswith("_us") and name not in best
    }
    return {**best, **medians, **added, "errors": sum(one["errors"] for one in rounds)}


def machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(': ')[2]}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return platform.machine()


def import_s() -> float:
    """Return how long a new interpreter needs for ``import doorstep``."""
    program = "import time; begun = time.perf_counter(); import doorstep; print(time.perf_counter() - begun)"
    command = [sys.executable, "-c", program]
    return min(float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(IMPORTS))


# Showing


def tables(figures: dict[str, Any]) -> list[str]:
    gateways = figures["gateways"]
    there = {name: one for name, one in gateways.items() if "missing" not in one}
    blocks = [conditions(figures), programs(gateways)]
    for path, title in DIALECTS.items():
        cells = {name: one["cells"][path] for name, one in there.items() if path in one["cells"]}
        absent = {name: "does not speak it" for name, one in there.items() if path not in one["cells"]}
        absent |= {name: one["missing"] for name, one in gateways.items() if "missing" in one}
        blocks += [
            f"**{title}, whole answers**",
            plain(cells, absent),
            f"**{title}, streams: time**",
            stream_times(cells, absent),
        ]
        blocks += [f"**{title}, streams: computing**", stream_cpu(cells, absent)]
        if Doorstep.name in cells and set(cells) - {Direct.name, Doorstep.name}:
            blocks += [f"**{title}, {Doorstep.name} beside each**", ratios(cells)]
    return blocks


def conditions(figures: dict[str, Any]) -> str:
    before, after = figures["load_average"]
    text = (
        f"{figures['at']} UTC, {figures['machine']}. {figures['rounds']} rounds of {figures['seconds']:g} s each. "
        f"Load average {before:.1f} before and {after:.1f} after."
    )
    ours = figures["gateways"].get(Doorstep.name, {})
    if record := ours.get("record"):
        text += (
            f" Of {record['answered']:,} calls that {Doorstep.name} answered, its record has {record['recorded']:,}, "
            f"each with both bodies; the store caught up at most {ours['caught_up_s']:.1f} s after the load ended. "
            f"`import doorstep` takes {figures['import_s'] * 1000:.1f} ms."
        )
    return text


def programs(gateways: dict[str, Any]) -> str:
    rows = []
    for name, one in gateways.items():
        if name == Direct.name:
            continue
        if "missing" in one:
            rows.append([name, one["missing"], *["-"] * 6])
            continue
        memory = one["rss_mb"]
        waits = [cell["waited"] for cells in one["cells"].values() for cell in cells.values()]
        rows.append(
            [
                f"{name} {one['version']}",
                one["records"],
                str(one["packages"]),
                f"{one['start_s']:.1f}",
                with_recorder(memory["idle"], memory["recorder_idle"]),
                with_recorder(memory["load"], memory["recorder_load"]),
                str(int(sum(cell["errors"] for cells in one["cells"].values() for cell in cells.values()))),
                f"{statistics.median(waits):.0%}",
            ]
        )
    head = [
        "gateway",
        "records",
        "packages",
        "first answer s",
        "RSS MB idle",
        "RSS MB load",
        "errors",
        "waited for its core",
    ]
    return markdown(head, rows)


def plain(cells: dict[str, Any], absent: dict[str, str]) -> str:
    head = [
        "gateway",
        "answers/s c1 / c16 / c64",
        "CPU us per answer",
        "of its recorder",
        "p50 / p99 ms c1",
        "c16",
        "c64",
    ]
    rows = [
        [
            name,
            over(one, PLAIN, "per_second", count),
            cpu(name, one, PLAIN),
            recorder(one, PLAIN),
            *(pair(name, one[cell.name], "latency") for cell in PLAIN),
        ]
        for name, one in cells.items()
    ]
    return markdown(head, rows + missing_rows(absent, len(head)))


def stream_times(cells: dict[str, Any], absent: dict[str, str]) -> str:
    head = ["gateway", "first token p50 / p99 ms c1", "c16", "c64", "each chunk p50 / p99 ms c1", "c16", "c64"]
    rows = [
        [
            name,
            *(pair(name, one[cell.name], "first_token") for cell in PACED),
            *(pair(name, one[cell.name], "chunk_delay") for cell in PACED),
        ]
        for name, one in cells.items()
    ]
    return markdown(head, rows + missing_rows(absent, len(head)))


def stream_cpu(cells: dict[str, Any], absent: dict[str, str]) -> str:
    head = ["gateway", "CPU us per chunk c1 / c16 / c64", "burst", "of its recorder c64 / burst", "burst chunks/s"]
    rows = [
        [
            name,
            cpu(name, one, PACED),
            cpu(name, one, [BURST]),
            recorder(one, [PACED[-1], BURST]),
            count(one[BURST.name]["chunks_per_second"]),
        ]
        for name, one in cells.items()
    ]
    return markdown(head, rows + missing_rows(absent, len(head)))


def ratios(cells: dict[str, Any]) -> str:
    """How many times less ours needs: by its answering alone, and with what its recorder uses."""
    ours = cells[Doorstep.name]
    rows = []
    for name, one in cells.items():
        if name in {Direct.name, Doorstep.name}:
            continue
        for what, figures in (("answering", CPU[:1]), ("with its recorder", CPU)):
            less = [
                sum(one[cell.name][figure] for figure in figures) / sum(ours[cell.name][figure] for figure in figures)
                for cell in (*PLAIN, PACED[-1], BURST)
            ]
            shown = [times(value) for value in less]
            rows.append([name, what, " / ".join(shown[:3]), " / ".join(shown[3:])])
    head = ["how many times the CPU of ours", "ours counted", "per answer c1 / c16 / c64", "per chunk c64 / burst"]
    return markdown(head, rows)


def over(one: dict[str, Round], cells: Sequence[Cell], name: str, show: Callable[[float], str]) -> str:
    return " / ".join(show(one[cell.name][name]) for cell in cells)


def cpu(name: str, one: dict[str, Round], cells: Sequence[Cell]) -> str:
    return "-" if name == Direct.name else over(one, cells, "cpu_us", decimal)


def recorder(one: dict[str, Round], cells: Sequence[Cell]) -> str:
    used = any(one[cell.name]["recorder_cpu_us"] for cell in cells)
    return over(one, cells, "recorder_cpu_us", decimal) if used else "-"


def pair(name: str, cell: Round, figure: str) -> str:
    """Show what a gateway adds; of the direct line, what it takes."""
    figure = figure if name == Direct.name else f"added_{figure}"
    added = "" if name == Direct.name else "+"
    return f"{cell[f'{figure}_p50_us'] / 1000:{added}.2f} / {cell[f'{figure}_p99_us'] / 1000:{added}.1f}"


def with_recorder(own: float, recorder: float) -> str:
    return f"{own:.0f} + {recorder:.0f}" if recorder else f"{own:.0f}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def decimal(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def times(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def missing_rows(absent: dict[str, str], columns: int) -> list[list[str]]:
    return [[name, why, *["-"] * (columns - 2)] for name, why in absent.items()]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    main()
