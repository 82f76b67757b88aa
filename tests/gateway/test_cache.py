"""The exact-match cache: when it answers, and for whom."""

import json

import pytest
from clocks import Clock

from doorstep.config import CacheSettings, ModelSettings
from doorstep.errors import BadInput
from doorstep.gateway.cache import ENTRY_BYTES, Cache
from doorstep.gateway.dialects.base import Head, Reading
from doorstep.gateway.models import Target


class Plain:
    """A dialect as far as a cache needs one: an answer is whole when it ends in a full stop."""

    NAME = "plain"
    PATH = "/plain"

    def understand(self, answer):
        return Reading(complete=answer.endswith(b"."))


class Named:
    def __init__(self, name):
        self.name = name


ASKED = {"model": "fast", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
MINI, OTHER = Target(Named("openai"), "mini"), Target(Named("openai"), "other")
BY_KEY, BY_ALL = (ModelSettings(targets=["openai/mini"], cache=scope) for scope in ("key", "all"))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(clock):
    return Cache(CacheSettings(ttl_s=100, most_bytes=10_000), clock)


@pytest.fixture
def wish(cache):
    def wished(fields=ASKED, *, alias=BY_KEY, said=None, key_id="key_1", stream=False, **headers):
        given = {name.encode(): value for name, value in headers.items()}
        if said is not None:
            given[b"x-doorstep-cache"] = said
        body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
        head = Head(model="fast", stream=stream)
        return cache.wish(alias, given, dialect=Plain(), head=head, body=body, key_id=key_id)

    return wished


@pytest.fixture
def keep(cache, wish):
    def kept(wished=None, body=b"answer.", status=200, target=MINI):
        cache.keep(
            wished or wish(), target, call_id="call_1", status=status, content_type="text/event-stream", body=body
        )

    return kept


def test_a_kept_answer_is_given_again_as_it_was(cache, wish, keep):
    keep()
    found = cache.find(wish(), MINI)
    assert (found.call_id, found.content_type, found.body) == ("call_1", "text/event-stream", b"answer.")


@pytest.mark.parametrize("alias", [None, ModelSettings(targets=["openai/mini"])])
def test_it_is_off_unless_it_is_turned_on(wish, alias):
    assert wish(alias=alias) is None
    assert wish(alias=alias, said=b"on") is not None


def test_a_request_can_turn_it_off(wish):
    assert wish(said=b"off") is None


def test_order_spacing_and_the_models_name_make_no_difference(cache, wish, keep):
    keep()
    body = b'{"temperature":0, "messages":[{"content":"hello","role":"user"}],"model" : "openai/mini"}'
    assert cache.find(wish(body), MINI)


@pytest.mark.parametrize(
    "other",
    [
        {"fields": ASKED | {"temperature": 1}},
        {"fields": ASKED | {"odd": None}},
        {"key_id": "key_2"},
        {"stream": True},
        {"anthropic-beta": b"context-1m"},
    ],
)
def test_another_question_has_another_answer(cache, wish, keep, other):
    keep()
    assert cache.find(wish(**other), MINI) is None


def test_what_counts_is_who_would_answer(cache, wish, keep):
    keep()
    assert cache.find(wish(), OTHER) is None
    assert cache.find(wish(), Target(MINI.provider, "mini", "tinker://run/1")) is None


def test_keys_share_answers_only_where_the_alias_says_so(cache, wish, keep):
    keep(wish(alias=BY_ALL, key_id="key_1"))
    assert cache.find(wish(alias=BY_ALL, key_id="key_2"), MINI)
    assert cache.find(wish(alias=None, said=b"on", key_id="key_2"), MINI) is None


@pytest.mark.parametrize(
    ("status", "body"), [(429, b"busy."), (206, b"half."), (200, b"cut o"), (200, b"x" * 9_999 + b".")]
)
def test_only_whole_good_answers_of_a_reasonable_size_are_kept(cache, wish, keep, status, body):
    keep(status=status, body=body)
    assert cache.find(wish(), MINI) is None


def test_answers_grow_old(cache, wish, keep, clock):
    keep()
    clock.now += 99
    assert cache.find(wish(), MINI)
    clock.now += 1
    assert cache.find(wish(), MINI) is None
    assert cache.bytes == 0


def test_a_request_can_say_how_old_an_answer_may_be(cache, wish, keep, clock):
    keep()
    clock.now += 10
    assert cache.find(wish(said=b"max-age=11"), MINI)
    assert cache.find(wish(said=b"max-age=10"), MINI) is None
    keep(wish(said=b"max-age=0"), b"newer.")
    assert cache.find(wish(said=b"max-age=5"), MINI).body == b"newer."


@pytest.mark.parametrize("said", [b"yes", b"max-age", b"max-age=-1", b"max-age=soon", b"", b"\xff"])
def test_a_header_that_says_nothing_known_is_refused(wish, said):
    with pytest.raises(BadInput, match="x-doorstep-cache"):
        wish(said=said)


def test_it_holds_so_many_bytes_and_those_used_last(cache, wish, keep):
    wishes = [wish(ASKED | {"seed": number}) for number in range(30)]
    for wished in wishes:
        keep(wished, b"x" * 1000 + b".")
        cache.find(wishes[0], MINI)
    assert cache.bytes <= 10_000
    assert cache.bytes == 6 * (1001 + ENTRY_BYTES)
    assert [number for number, wished in enumerate(wishes) if cache.find(wished, MINI)] == [0, 25, 26, 27, 28, 29]


def test_what_is_no_json_counts_as_it_is(cache, wish, keep):
    keep(wish(b"--form\r\n1"))
    assert cache.find(wish(b"--form\r\n1"), MINI)
    assert cache.find(wish(b"--form\r\n2"), MINI) is None
    assert cache.find(wish(b"[" * 100_000), MINI) is None
