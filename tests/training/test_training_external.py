"""Weights that are taken away: plain, or encrypted for those who are to read them."""

import pyrage
import pytest
from scripted_engine import ScriptedEngine

from doorstep.engine.api import LoraSpec
from doorstep.errors import UsageError
from doorstep.training import external


@pytest.fixture
async def engine(tmp_path):
    made = ScriptedEngine(str(tmp_path))
    await made.create_adapter("a", LoraSpec(rank=2))
    return made


async def test_without_recipients_files_are_as_the_engine_writes_them(engine, tmp_path):
    written = await external.write(engine, "a", tmp_path / "out", [])
    (file,) = (tmp_path / "out").iterdir()
    assert (file.name, file.stat().st_size) == ("adapter.json", written.size)


async def test_each_recipient_can_read_and_nothing_is_left_plain(engine, tmp_path):
    keys = [pyrage.x25519.Identity.generate() for _ in range(2)]
    written = await external.write(engine, "a", tmp_path / "out", [str(key.to_public()) for key in keys])
    (file,) = (tmp_path / "out").iterdir()
    assert (file.name, file.stat().st_size) == ("adapter.json.age", written.size)
    for key in keys:
        assert b'"rank":2' in pyrage.decrypt(file.read_bytes(), [key])


@pytest.mark.parametrize("text", ["age1nonsense", "ssh-rsa nonsense", "x"])
async def test_what_is_no_recipient_is_refused_before_anything_is_written(engine, tmp_path, text):
    with pytest.raises(UsageError, match="is no age key"):
        await external.write(engine, "a", tmp_path / "out", [text])
    assert not (tmp_path / "out").exists()
