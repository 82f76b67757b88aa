"""A real server with the fake provider, for those who take its description at its word."""

import httpx
import pytest
from gateway_parts import serving, settings_for, wait_for

from doorstep.config import ProviderSettings
from doorstep.gateway.keys import Keys, Role, Terms


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("described")


@pytest.fixture(scope="session")
def key(folder):
    """A key of an administrator, so that a key that is made there changes nothing for anybody."""
    return Keys(folder).create(Terms(name="tests", role=Role.ADMIN))[1]


@pytest.fixture(scope="session")
def address(folder, key):
    with serving(settings_for(folder, model=None, providers={"fake": ProviderSettings(base_url="fake:")})) as url:
        yield url


@pytest.fixture(scope="session")
def named(address, folder, key):
    """What the steps of paths name."""
    with httpx.Client(base_url=address, headers={"authorization": f"Bearer {key}"}) as client:
        video = client.post("/v1/videos", json={"model": "fake/video", "prompt": "a frog"}).json()["id"]
        wait_for(lambda: client.get(f"/v1/videos/{video}").json()["status"] == "completed")
    other = Keys(folder).create(Terms(name="other"))[0].key_id
    return {"model": "fake/echo", "video_id": video, "key_id": other}
