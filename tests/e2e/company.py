"""A small company whose job is learned in seconds, and the real ``doorstep`` command in processes of its own."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from doorstep.config import KNOWN_PROVIDERS

COMMAND = (sys.executable, "-m", "doorstep")
WORKFLOW = "crates"
RECORDS = 160  # of which the newest 40 are held out
SEED = "3"
BUDGET = ("--budget", "1s", "--seed", SEED)  # the least number of steps
PATIENCE_S = 120.0


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one object on stdout; a command that failed shows what it said instead."""
        assert self.code == 0, self.err
        return json.loads(self.out)


class Company:
    """A working folder with the job ``crates``: from a sentence to what was ordered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / ".doorstep"

    def found(self, records: list[dict]) -> dict:
        """Make the workflow from records; return what ``init`` says."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
        made = self.doorstep("init", WORKFLOW, "--from", "records.jsonl", "--json").json
        with (self.folder / "workflows" / WORKFLOW / "workflow.py").open("a", encoding="utf-8") as file:
            file.write("\nMAX_TOKENS = 8\n")
        return made

    def doorstep(self, *arguments: str) -> Ended:
        """Run a command to its end."""
        ended = subprocess.run(
            (*COMMAND, *arguments), cwd=self.folder, env=environment(), capture_output=True, text=True, check=False
        )
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command in a session of its own, as a terminal would."""
        return subprocess.Popen(
            (*COMMAND, *arguments),
            cwd=self.folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def rows(self, *tables: str) -> int:
        """Count the rows of tables, from outside; none while there is no table."""
        try:
            with closing(sqlite3.connect(f"file:{self.data / 'doorstep.db'}?mode=ro", uri=True)) as database:
                counts = [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]
        except sqlite3.OperationalError:
            return 0
        return sum(counts)

    def change(self, statement: str, *values: object) -> None:
        """Change the database behind Doorstep's back."""
        with closing(sqlite3.connect(self.data / "doorstep.db")) as database, database:
            database.execute(statement, values)


def environment() -> dict[str, str]:
    """Return the environment of a user who has set nothing, with an engine of one thread."""
    keys = {name for provider in KNOWN_PROVIDERS.values() for name in provider.key_names}
    kept = {name: value for name, value in os.environ.items() if name not in keys and not name.startswith("DOORSTEP_")}
    return kept | {"DOORSTEP_SERVE_THREADS": "1"}


def sentences(seed: int = 0) -> list[dict]:
    """Return records whose answer stands in the sentence. No answer is frequent, so none can be guessed."""
    draw = random.Random(seed)
    goods = ["plums", "pears", "limes", "figs", "leeks", "beans", "onions", "apples"]
    said = [(number, good) for number in range(10, 100) for good in goods]
    return [
        {"id": f"r{place}", "input": f"send {number} crates of {good} please", "expected": f"{number} crates"}
        for place, (number, good) in enumerate(draw.sample(said, RECORDS))
    ]


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Wait for a moment, where a process is given in its life."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert process is None or process.poll() is None, f"it ended before that moment: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "the moment did not come"
        time.sleep(0.01)


def cut_power(process: subprocess.Popen[str]) -> None:
    """Kill a command with its server, engine and compactor at once, with no chance to put anything in order."""
    others = descendants(process.pid)
    assert len(others) == 3
    for pid in [*others, process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def press_ctrl_c(process: subprocess.Popen[str]) -> Ended:
    """Send what a terminal sends, to the command and its process group."""
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    return Ended(process.returncode, out, err)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started, the youngest first."""
    listing = subprocess.run(("ps", "-A", "-o", "pid=,ppid="), capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in map(str.split, listing.splitlines())}
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[:0:-1]
