"""Which addresses a request may name."""

import asyncio
import socket

import pytest

from doorstep.errors import BadInput
from doorstep.gateway.addresses import check

PRIVATE = [
    "http://127.0.0.1/", "http://127.1/", "http://2130706433/", "http://0x7f.0.0.1/", "http://localhost:8000/x",
    "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[2002:7f00:1::]/", "http://[64:ff9b::7f00:1]/",
    "http://10.1.2.3/", "http://172.16.0.1/", "http://192.168.1.1/", "http://[fd12::1]/", "http://[fe80::1]/",
    "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://100.100.100.200/",
    "http://0.0.0.0/", "http://[::]/", "http://224.0.0.1/", "http://240.0.0.1/", "http://100.64.0.1/",
]  # fmt: skip
NEVER = [
    "http://169.254.169.254/", "http://[fe80::1]/", "http://[fd00:ec2::254]/", "http://100.100.100.200/",
    "http://192.0.0.192/", "http://[::ffff:169.254.169.254]/", "http://0.0.0.0/", "http://224.0.0.1/",
]  # fmt: skip


@pytest.mark.parametrize("url", PRIVATE)
async def test_an_address_that_is_not_public_is_refused(url):
    with pytest.raises(BadInput, match=r"callback: .* not on the public internet"):
        await check(url, where="callback")


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://10.1.2.3/", "http://[::1]/", "http://[fd12::1]/"])
async def test_an_own_network_can_be_let_in(url):
    assert (await check(url, allow_private=True)).url == url


@pytest.mark.parametrize("url", NEVER)
async def test_what_a_cloud_tells_its_machines_is_never_let_in(url):
    with pytest.raises(BadInput):
        await check(url, allow_private=True)


@pytest.mark.parametrize("url", ["http://1.1.1.1/x", "https://[2606:4700:4700::1111]:8443/x"])
async def test_a_public_address_may_be_called(url):
    found = await check(url)
    assert found.url == url
    assert found.address in url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///etc/passwd", "no address on the web"),
        ("ftp://1.1.1.1/", "no address on the web"),
        ("gopher://1.1.1.1/", "no address on the web"),
        ("/x", "no address on the web"),
        ("http://", "no address on the web"),
        ("http://me:secret@1.1.1.1/", "leave them out"),
        ("http://1.1.1.1:99999/", "is no URL"),
        ("http://[::1/", "is no URL"),
        ("http://nowhere.invalid/", "cannot be found"),
        ("http://a..b/", "cannot be found"),
    ],
)
async def test_what_is_no_address_on_the_web_is_refused(url, why):
    with pytest.raises(BadInput, match=why):
        await check(url)


async def test_a_name_with_one_address_inside_is_refused(monkeypatch):
    async def resolve(host, port, **_kind):
        return [(socket.AF_INET, 0, 0, "", (address, port)) for address in ("1.1.1.1", "10.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    with pytest.raises(BadInput, match=r"two\.example is 10\.0\.0\.1"):
        await check("http://two.example/")
