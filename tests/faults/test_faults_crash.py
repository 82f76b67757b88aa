"""A kill, a full disk, a database that is away: nothing that was answered is lost from the record in silence."""

import os
import shutil
import sqlite3
import subprocess
import threading
import time
from contextlib import closing, contextmanager

import httpx
from gateway_parts import wait_for
from served import ask

CALL_ID = "x-doorstep-call-id"


class Load:
    """Clients that call as fast as they can; ``answered`` are the calls whose answer they have in full."""

    def __init__(self, url, clients=4):
        self.answered = []
        self._url = url
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        for thread in self._threads:
            thread.join()

    def _call(self, number):
        body = {"model": "bad/well", "messages": [{"role": "user", "content": "hello"}], "stream": bool(number % 2)}
        with httpx.Client(trust_env=False, timeout=10) as client:
            while True:
                try:
                    answer = client.post(f"{self._url}/v1/chat/completions", json=body)
                except httpx.HTTPError:
                    return
                assert answer.status_code == 200
                self.answered.append(answer.headers[CALL_ID])


def test_every_answered_call_is_in_the_store_after_a_kill(serve):
    served = serve()
    with Load(served.start()) as load:
        wait_for(lambda: len(load.answered) >= 300, 60)
        served.kill()
    served.start()
    wait_for(lambda: set(load.answered) <= {call.call_id for call in served.calls()}, 60)
    assert served.stop() == 0
    ids = [call.call_id for call in served.calls()]
    assert len(ids) == len(set(ids))


def test_calls_are_answered_while_the_database_is_away_and_recorded_when_it_is_back(serve):
    served = serve()
    url = served.start()
    first = ask(url).headers[CALL_ID]
    wait_for(served.calls)
    with closing(sqlite3.connect(served.data / "doorstep.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        until = time.monotonic() + 3
        meanwhile = []
        while time.monotonic() < until:
            meanwhile.append(ask(url).headers[CALL_ID])
        assert len(meanwhile) > 3
        assert {call.call_id for call in served.calls()} == {first}
        database.execute("ROLLBACK")
    wait_for(lambda: {call.call_id for call in served.calls()} == {first, *meanwhile}, 60)
    assert served.stop() == 0


@contextmanager
def small_disk(folder, megabytes):
    """Make a folder a disk of so many megabytes, where one may be mounted; else no file may grow larger than that.

    Yields the command that a process is to run under.
    """
    folder.mkdir()
    mounting = ("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder))
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
        yield ("prlimit", f"--fsize={megabytes * 1_000_000}")
        return
    try:
        yield ()
    finally:
        subprocess.run(("umount", "-l", str(folder)), check=True)


def test_a_full_disk_fails_no_call_and_what_was_not_counted_as_lost_is_kept(serve, tmp_path):
    with small_disk(tmp_path / "disk", 6) as under:
        served = serve(tmp_path / "disk" / "data")
        url = served.start(*under)
        answered = []
        while recorder(url)["dropped"] < 5:
            assert len(answered) < 500
            long = [{"role": "user", "content": os.urandom(150_000).hex()}]
            answer = ask(url, messages=long)
            assert answer.status_code == 200
            answered.append(answer.headers[CALL_ID])
        dropped = recorder(url)["dropped"]
        served.kill()
        shutil.copytree(served.data, tmp_path / "larger")
    larger = serve(tmp_path / "larger")
    larger.start()
    wait_for(lambda: len(larger.calls()) == len(answered) - dropped, 60)
    assert {call.call_id for call in larger.calls()} < set(answered)
    assert larger.stop() == 0


def recorder(url):
    return httpx.get(f"{url}/healthz", trust_env=False).json()["recorder"]
