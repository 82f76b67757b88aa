"""The engine in its own process, through the real socket: same numbers, clear ends."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import tiny_models
from engine_use import all_at_once, sample, tokens, trained
from gateway_parts import wait_for

from doorstep.engine.api import SampleParams
from doorstep.engine.local import LocalEngine
from doorstep.engine.remote import RemoteEngine
from doorstep.errors import EngineError, EngineUnavailable

SHORT = SampleParams(max_tokens=9, seed=1)
LONG = SampleParams(max_tokens=150, seed=1, stop=[])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_models.write(tiny_models.qwen3(), tmp_path_factory.mktemp("model"))


@pytest.fixture
async def remote(folder, tmp_path):
    remote = await RemoteEngine.start(folder=folder, name="random", threads=1, log=tmp_path / "engine.log")
    yield remote
    await remote.close()


async def test_it_gives_what_the_engine_in_this_process_gives(remote, folder, tmp_path):
    local = await LocalEngine.start(folder, "random")
    found = []
    for engine, name in ((local, "l"), (remote, "r")):
        await trained(engine, "a")
        saved = await engine.save("a", str(tmp_path / name), optimizer=True)
        spec = await engine.load("b", str(tmp_path / name), optimizer=True)
        jobs = [("b", tokens(20, seed), SampleParams(max_tokens=9, seed=1), 3) for seed in range(9)]
        sampled = await all_at_once(engine, jobs)
        found.append((await engine.info(), saved, spec, sampled, (await engine.score("b", [1, 2, 3])).logprobs))
        await engine.drop_adapter("a")
    await local.close()
    assert found[0] == found[1]


async def test_errors_come_through_with_their_category(remote):
    with pytest.raises(EngineError, match="there is no adapter x") as caught:
        await remote.score("x", [1])
    assert caught.value.category == "user"
    assert (await remote.score(None, [1])).logprobs == [None]


async def test_a_number_that_does_not_travel_is_refused(remote):
    with pytest.raises(EngineError, match="more than 64 bits"):
        await sample(remote, None, [1], SampleParams(max_tokens=2**70))
    assert (await remote.score(None, [1])).logprobs == [None]


async def test_its_cpu_time_grows_with_its_work(remote):
    before = await remote.cpu_seconds()
    await sample(remote, None, [1], LONG, n=64)
    assert await remote.cpu_seconds() > before > 0


async def test_closing_the_iterator_cancels(remote):
    stream = remote.sample(None, [1], LONG, n=64)
    await anext(stream)
    await stream.aclose()
    await sample(remote, None, [1], SampleParams(max_tokens=2))
    idle = await remote.cpu_seconds()
    await asyncio.sleep(0.3)
    assert await remote.cpu_seconds() - idle < 0.1


async def test_when_it_is_killed_open_and_later_calls_say_so_until_it_is_there_again(remote, monkeypatch):
    monkeypatch.setattr("doorstep.engine.remote.FIRST_PAUSE_S", 0.0)
    losses = []
    remote.on_loss += [lambda: 1 / 0, lambda: losses.append(1)]
    await trained(remote, "a")
    wanted, before = await sample(remote, None, [1], SHORT), await remote.cpu_seconds()
    stream = remote.sample(None, [1], LONG, n=64)
    await anext(stream)
    os.kill(remote.process.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="has ended"):
        async for _ in stream:
            pass
    with pytest.raises(EngineUnavailable, match="being started again"):
        await remote.info()
    await again(remote)
    assert losses == [1]
    assert await sample(remote, None, [1], SHORT) == wanted
    assert await remote.cpu_seconds() > before
    with pytest.raises(EngineError, match="there is no adapter a"):
        await sample(remote, "a", [1], SHORT)


async def test_what_does_not_start_again_is_tried_again_and_closed_in_peace(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("doorstep.engine.remote.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("doorstep.engine.remote.LONGEST_PAUSE_S", 0.01)
    place = shutil.copytree(folder, tmp_path / "model")
    remote = await RemoteEngine.start(folder=place, name="random", threads=1, log=tmp_path / "engine.log")
    (place / "config.json").rename(tmp_path / "config.json")
    os.kill(remote.process.pid, signal.SIGKILL)
    await asyncio.to_thread(wait_for, lambda: "holds no model" in (tmp_path / "engine.log").read_text(), 60)
    (tmp_path / "config.json").rename(place / "config.json")
    await again(remote)
    os.kill(remote.process.pid, signal.SIGKILL)
    await asyncio.sleep(0.2)  # in the middle of the next start
    await remote.close()


async def again(remote):
    """Wait until there is a process."""
    for _ in range(1200):
        with suppress(EngineUnavailable):
            return await remote.info()
        await asyncio.sleep(0.05)
    raise AssertionError("no engine after a minute")


async def test_it_ends_when_its_owner_does(folder, tmp_path):
    script = (
        "import asyncio, os, pathlib\n"
        "from doorstep.engine.remote import RemoteEngine\n"
        "async def main():\n"
        f"    folder, log = pathlib.Path({str(folder)!r}), pathlib.Path({str(tmp_path / 'log')!r})\n"
        "    engine = await RemoteEngine.start(folder, 'x', 1, log)\n"
        "    print(engine.process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    owner = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    output, _ = await owner.communicate()
    for _ in range(100):
        if not alive(int(output)):
            break
        await asyncio.sleep(0.05)
    assert not alive(int(output))


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended may lie about as a zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


async def test_a_bad_folder_is_a_clear_error_at_start(tmp_path):
    with pytest.raises(EngineError, match=r"did not start: .* holds no model: it must have config\.json"):
        await RemoteEngine.start(folder=tmp_path, name="x", threads=1, log=tmp_path / "engine.log")


def test_the_owner_needs_no_torch():
    modules = "doorstep.engine.api, doorstep.engine.remote, doorstep.engine.protocol"
    subprocess.run([sys.executable, "-c", f"import {modules}, sys; assert 'torch' not in sys.modules"], check=True)
