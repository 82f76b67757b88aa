"""The server that commands start or find: its address, and its own key beside those of people."""

import httpx
import pytest

from doorstep import config
from doorstep.cli import local_server
from doorstep.errors import StoreError
from doorstep.gateway.keys import Keys, Terms

FAKE = '[serve]\nmodel = ""\n[providers.fake]\nbase_url = "fake:"\n'


@pytest.fixture
def settings(doorstep, tmp_path):
    (tmp_path / "doorstep.toml").write_text(FAKE)
    return config.load()


def status(address, key):
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{address.url}/v1/chat/completions", json=body, headers=headers).status_code


@pytest.mark.parametrize(
    "begin", [local_server.claim, lambda data: local_server.note_address(data, "http://127.0.0.1:1", "key")]
)
def test_a_data_folder_that_takes_nothing_is_said(tmp_path, begin):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StoreError, match=r"data cannot be written to .* Make room"):
        begin(tmp_path / "data")


def test_its_own_key_is_accepted_where_people_have_keys(settings):
    Keys(settings.data).create(Terms(name="laptop"))
    with local_server.running(settings) as address:
        assert [status(address, key) for key in (address.key, "doorstep", "tml-local", "x")] == [200, 401, 401, 401]
        with local_server.running(settings) as found:
            assert found == address


def test_its_note_is_for_its_user_alone_and_its_key_is_in_no_log(settings):
    with local_server.running(settings) as address:
        note = settings.data / local_server.NOTE
        assert note.stat().st_mode & 0o777 == 0o600
        status(address, "wrong")
        status(address, address.key)
    assert address.key not in (settings.data / local_server.LOG).read_text()
    assert not note.exists()


def test_each_start_has_another_key(settings):
    keys = set()
    for _ in range(2):
        with local_server.running(settings) as address:
            keys.add(address.key)
    assert len(keys) == 2
    assert all(key.startswith("tml-") and len(key) > 40 for key in keys)


def test_a_command_works_though_callers_need_a_key(settings, doorstep, records, tmp_path):
    doorstep("init", "crates", "--from", str(records))
    doorstep("keys", "create")
    (tmp_path / "new.txt").write_text("send 7 crates")
    ended = doorstep("run", "crates", "new.txt", "--variant", "fake/echo", "--json")
    assert (ended.code, ended.json["n"], ended.json["failed"]) == (0, 1, 0)
