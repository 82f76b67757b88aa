"""What clients send fills no memory for good: addresses, names of models, names of headers."""

import sys
import weakref

import pytest
from gateway_parts import serving, settings_for
from raw_client import ask, call

from doorstep.config import PriceSettings, ProviderSettings
from doorstep.errors import ProviderError
from doorstep.gateway import door
from doorstep.gateway.dialects import openai_chat
from doorstep.gateway.providers.base import Ask
from doorstep.gateway.providers.http import HttpProvider
from doorstep.http_client import Client
from doorstep.value.prices import MOST_FOUND, PriceBook

LONG = b"x" * 10_000


class Name(str):
    """A text that can be watched."""

    __slots__ = ("__weakref__",)


def test_a_long_address_is_not_held():
    url = b"/v1/" + LONG
    before = sys.getrefcount(url)
    assert door.address_of(url) is None
    assert sys.getrefcount(url) == before


async def test_a_header_with_a_long_name_is_not_held():
    name, body = b"openai-" + LONG, b'{"model":"m","messages":[]}'
    before = sys.getrefcount(name)
    async with Client() as client:
        provider = HttpProvider("gone", ProviderSettings(base_url="http://127.0.0.1:1/v1"), client, {})
        ask = Ask(
            dialect=openai_chat, head=openai_chat.head(body), body=body, call_id="c", model="m", headers={name: b"1"}
        )
        with pytest.raises(ProviderError):
            await provider.answer(ask)
    del ask
    assert sys.getrefcount(name) == before


def test_a_model_with_an_endless_name_is_not_there(tmp_path):
    settings = settings_for(
        tmp_path / "data", model=None, providers={"gone": ProviderSettings(base_url="http://127.0.0.1:1")}
    )
    with serving(settings) as address:
        answer = ask(address, call("gone/" + LONG.decode()))
    assert answer.status == 404
    assert len(answer.body) < 1000


def test_the_price_book_forgets_models_that_it_was_asked_for():
    book = PriceBook(PriceSettings())
    name = Name("nobody-has-this")
    watch = weakref.ref(name)
    book.rates("openai", name)
    del name
    for number in range(MOST_FOUND):
        book.rates("openai", f"nobody-has-{number}")
    assert watch() is None
