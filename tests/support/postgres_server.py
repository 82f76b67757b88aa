"""A private PostgreSQL server for tests, where its programs are installed, and the databases that tests run on."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg

USER = "nobody"  # PostgreSQL refuses to run as root


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; Debian keeps them off the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


DATABASES = ["sqlite", "postgresql"] if programs() else ["sqlite"]


class Server:
    """Can be stopped and started again; every ``database()`` is a new one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = count()
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._as = {"user": USER} if os.geteuid() == 0 else {}
        self._run("initdb", "--auth=trust", "--username=tests", "--no-sync", "--encoding=UTF8", "--no-locale").wait()
        self.start()

    def start(self) -> None:
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "port": self._port}
        self._process = self._run("postgres", *(f"--{name}={value}" for name, value in options.items()))
        for _ in range(200):
            try:
                psycopg.connect(self._url("postgres")).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError("PostgreSQL did not start")

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)  # ends its connections too
        self._process.wait()

    def database(self) -> str:
        """Make a database and return its address."""
        name = f"test_{next(self._names)}"
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self._url(name).replace("postgresql:", "postgresql+psycopg:")

    def _url(self, database: str) -> str:
        return f"postgresql://tests@127.0.0.1:{self._port}/{database}"

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [str(programs() / program), "-D", str(self._folder), *arguments]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", **self._as)


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Run a server in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="doorstep-postgres-") as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, USER)
        server = Server(Path(folder))
        try:
            yield server
        finally:
            server.stop()
