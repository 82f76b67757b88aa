"""What the gateway's benchmarks need of the machine: the two C programs, and processes on one core, with what they use.

Linux only: it reads /proc. The gateway has the first core for itself, upstream and load share the second.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent
PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLE_S = 0.1
CPU_CLOCK = 2  # of a process, as clock_getcpuclockid(3) makes its number


@dataclass(frozen=True)
class Cores:
    """Which core has the gateway, and which upstream and load."""

    gateway: int
    load: int

    @staticmethod
    def pick() -> "Cores":
        free = sorted(os.sched_getaffinity(0))
        if len(free) < 2:
            sys.exit("Two cores are needed: one for the gateway, one for upstream and load.")
        return Cores(free[0], free[1])


@dataclass(frozen=True)
class Usage:
    """What some processes have used: CPU time, time they waited for a core, and memory they hold now."""

    cpu_ns: int = 0
    waited_ns: int = 0
    rss: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.cpu_ns + other.cpu_ns, self.waited_ns + other.waited_ns, self.rss + other.rss)

    def since(self, before: "Usage") -> "Usage":
        return Usage(self.cpu_ns - before.cpu_ns, max(0, self.waited_ns - before.waited_ns), self.rss)


class Process:
    """A program on one core, with everything it starts."""

    def __init__(self, command: Sequence[str | Path], core: int, log: Path, **options: Any) -> None:
        with log.open("ab") as out, on_core(core):
            self._process = subprocess.Popen(command, stdout=out, stderr=out, **options)
        self.log = log

    def alive(self) -> bool:
        return self._process.poll() is None

    def used(self, which: Callable[[int], bool] = lambda _: True) -> Usage:
        """Return what its processes have used, or those of them that ``which`` chooses."""
        return sum((usage(pid) for pid in tree(self._process.pid) if which(pid)), Usage())

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it in order, and wait until it has."""
        self.go_on()
        self._process.terminate()
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for pid in tree(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def tree(pid: int) -> Iterator[int]:
    """Yield a process and those that it started, and they."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def usage(pid: int) -> Usage:
    cpu = waited = pages = 0
    with suppress(OSError):  # it has just ended
        cpu = time.clock_gettime_ns(~pid << 3 | CPU_CLOCK)  # threads that have ended included
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            waited += int((task / "schedstat").read_text().split()[1])
    return Usage(cpu, waited, pages * PAGE)


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started here runs on this core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass
class Bench:
    """The two programs, ready to be used, and a folder for everything else."""

    place: Path
    cores: Cores
    upstream: int = field(default_factory=free_port)

    def load(
        self, port: int, request: bytes, connections: int, seconds: float, watch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Ask one request again and again; ``watch`` is called now and then meanwhile."""
        file = self.place / "request"
        file.write_bytes(request)
        command: list[str | Path] = [self.place / "load", str(port), file, str(connections), str(seconds)]
        with on_core(self.cores.load), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            while process.poll() is None:
                watch()
                time.sleep(SAMPLE_S)
            assert process.stdout is not None
            said = process.stdout.read()
        if process.returncode:
            raise RuntimeError(f"load ended with {process.returncode}")
        return dict(json.loads(said))


@contextmanager
def bench() -> Iterator[Bench]:
    """Compile the two programs into a temporary folder and start upstream."""
    with tempfile.TemporaryDirectory(prefix="doorstep-bench-") as name:
        made = Bench(Path(name), Cores.pick())
        for program in ("upstream", "load"):
            subprocess.run(["cc", "-O2", "-o", made.place / program, SOURCES / f"{program}.c"], check=True)
        os.sched_setaffinity(0, {made.cores.load})  # this process, too, is not to disturb the gateway
        command: list[str | Path] = [made.place / "upstream", str(made.upstream)]
        upstream = Process(command, made.cores.load, made.place / "upstream.log")
        try:
            yield made
        finally:
            upstream.stop()


class Sampler:
    """Calls something every second, from a thread of its own."""

    def __init__(self, sample: Callable[[], None]) -> None:
        self._sample = sample
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(1.0):
            self._sample()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
