"""Starts the exporter beside the server, and ends it with it."""

import logging
import subprocess
import sys
import threading
from contextlib import suppress

import msgspec

from doorstep.config import Settings
from doorstep.gateway.progress import FINISH
from doorstep.gateway.telemetry import cursor
from doorstep.gateway.telemetry.exporter import Work
from doorstep.gateway.telemetry.spans import servers
from doorstep.store import Store

log = logging.getLogger(__name__)

LAST_S = 5.0  # for what is left at the end; the rest is sent after the next start
RESTART_S = 1.0


class Export:
    """What comes into the record from now on goes to the collector of the settings."""

    def __init__(self, settings: Settings, store: Store) -> None:
        """Begin; the settings name a collector."""
        assert settings.telemetry.otlp is not None
        cursor.begin(settings.data / cursor.FILE, settings.record, store)
        self._work = Work(
            store=settings.record,
            data=str(settings.data),
            otlp=settings.telemetry.otlp,
            content=settings.telemetry.content,
            servers=servers(settings.providers),
        )
        self._closing = threading.Event()
        self._process = self._start()
        self._attendant = threading.Thread(target=self._attend, name="telemetry", daemon=True)
        self._attendant.start()

    def close(self) -> None:
        """Send what is left, for a few seconds. Call it once the record is complete."""
        self._closing.set()
        with suppress(OSError, ValueError):  # it has ended
            assert self._process.stdin is not None
            self._process.stdin.write(FINISH)
        try:
            self._process.wait(LAST_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._attendant.join()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "doorstep.gateway.telemetry.exporter", self._work.data],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            process_group=0,  # Ctrl-C is for this process, which then ends the other
        )
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(msgspec.json.encode(self._work) + b"\n")
        return process

    def _attend(self) -> None:
        """Start another exporter when one ends on its own."""
        while True:
            with self._process as process:
                code = process.wait()
            if self._closing.wait(RESTART_S):
                return
            log.error("the exporter of telemetry ended with %d; another one goes on", code)
            self._process = self._start()
