"""The HTTP client over real sockets, on both event loops."""

import asyncio
import socket
import ssl
import subprocess

import pytest
from raw_upstream import LAST_CHUNK, chunk, chunked, upstream_that, whole

from doorstep.errors import ProviderError, UsageError
from doorstep.http_client import HIGH_WATER, Client


@pytest.fixture
async def client():
    async with Client() as made:
        yield made


async def post(client, upstream, body=b"{}", **options):
    return await client.request("POST", f"{upstream.url}/v1/x", [(b"x-one", b"1")], body, **options)


async def all_of(response):
    pieces = []
    while piece := await response.next():
        pieces.append(piece)
    return pieces


async def test_a_request_and_its_whole_answer(client):
    async def say(caller):
        caller.send(whole(b'{"a":1}', "Content-Type: application/json", "X-Two: a", "x-two: b"))

    async with upstream_that(say) as upstream:
        response = await client.request("POST", f"{upstream.url}/v1/x y?q=ü", [(b"x-one", b"1")], b"hello")
        host = upstream.url.removeprefix("http://").encode()
        assert upstream.requests == [
            b"POST /v1/x%20y?q=%C3%BC HTTP/1.1\r\nhost: " + host + b"\r\nx-one: 1\r\ncontent-length: 5\r\n\r\nhello"
        ]
        assert (response.status, response.is_stream, await response.read()) == (200, False, b'{"a":1}')
        assert response.headers == {"content-length": "7", "content-type": "application/json", "x-two": "a, b"}
        assert await response.next() == b""


async def test_connections_are_used_again_and_have_no_delay(client):
    async def say(caller):
        caller.send(whole(b"x"))

    async with upstream_that(say) as upstream:
        for _ in range(3):
            await (await post(client, upstream)).read()
        (connection,) = client.connections
        nodelay = connection._transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert (len(upstream.callers), bool(nodelay)) == (1, True)


@pytest.mark.parametrize("answer", [whole(b"x", "Connection: close"), b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx"])
async def test_a_connection_that_the_upstream_will_close_is_not_used_again(client, answer):
    async def say(caller):
        caller.send(answer)

    async with upstream_that(say) as upstream:
        for _ in range(2):
            assert await (await post(client, upstream)).read() == b"x"
        assert len(upstream.callers) == 2


async def test_calls_at_once_have_connections_of_their_own(client):
    async def say(caller):
        if len(caller.upstream.requests) == 8:
            for each in caller.upstream.callers:
                each.send(whole(b"x"))

    async with upstream_that(say) as upstream:
        responses = await asyncio.gather(*(post(client, upstream) for _ in range(8)))
        assert [await response.read() for response in responses] == [b"x"] * 8
        assert len(upstream.callers) == 8


async def test_chunks_come_as_they_are_sent_and_joined_where_they_wait(client):
    go = asyncio.Event()

    async def say(caller):
        caller.send(chunked("Content-Type: text/event-stream"))
        await go.wait()
        caller.send(chunk(b"a"), chunk(b"b"), chunk(b"c"))
        await go.wait()
        caller.send(chunk(b"d"), b"0\r\nX-Trailer: t\r\n\r\n")

    async with upstream_that(say) as upstream:
        response = await post(client, upstream)
        assert (response.status, response.is_stream) == (200, True)
        go.set()
        assert b"".join(await all_of(response)) == b"abcd"
        assert "x-trailer" not in response.headers
        await post(client, upstream)
        assert len(upstream.callers) == 1


async def test_an_answer_may_be_cut_anywhere_on_its_way(client):
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    answer = interim + chunked("X-One: 1") + chunk(b"hello") + chunk("wörld".encode()) + LAST_CHUNK

    async def say(caller):
        cut = len(caller.upstream.requests)
        caller.send(answer[:cut])
        await caller.writer.drain()
        await asyncio.sleep(0.001)
        caller.send(answer[cut:])

    async with upstream_that(say) as upstream:
        for _ in range(len(answer)):
            response = await post(client, upstream)
            assert (response.status, response.headers["x-one"]) == (200, "1")
            assert await response.read() == "hellowörld".encode()
        assert len(upstream.callers) == 1


async def test_a_body_without_length_ends_with_the_connection(client):
    async def say(caller):
        caller.send(b"HTTP/1.1 200 OK\r\n\r\nab")
        caller.close()

    async with upstream_that(say) as upstream:
        assert await (await post(client, upstream)).read() == b"ab"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_some_statuses_have_no_body(client, status):
    async def say(caller):
        caller.send(f"HTTP/1.1 {status}\r\n\r\n".encode())

    async with upstream_that(say) as upstream:
        for _ in range(2):
            assert await (await post(client, upstream)).read() == b""
        assert len(upstream.callers) == 1


async def test_an_answer_to_head_has_no_body(client):
    async def say(caller):
        caller.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")

    async with upstream_that(say) as upstream:
        response = await client.request("HEAD", upstream.url)
        assert (response.headers["content-length"], await response.read()) == ("99", b"")


async def test_interim_answers_are_skipped(client):
    async def say(caller):
        caller.send(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", whole(b"x"))

    async with upstream_that(say) as upstream:
        response = await post(client, upstream)
        assert (response.status, await response.read(), "link" in response.headers) == (200, b"x", False)


async def test_a_kept_connection_that_closes_before_it_answers_is_replaced_once(client):
    async def say(caller):
        if len(caller.upstream.requests) == 2:  # took the second request, then went
            caller.reset()
        else:
            caller.send(whole(b"x"))

    async with upstream_that(say) as upstream:
        for _ in range(2):
            assert await (await post(client, upstream, b"same")).read() == b"x"
        assert [request[-4:] for request in upstream.requests] == [b"same"] * 3


async def test_a_fresh_connection_that_closes_before_it_answers_is_an_error(client):
    async def say(caller):
        caller.close()

    async with upstream_that(say) as upstream:
        with pytest.raises(ProviderError, match="mine closed the connection without an answer") as caught:
            await post(client, upstream, name="mine")
        assert (caught.value.status, len(upstream.requests)) == (502, 1)


async def test_a_kept_connection_that_began_to_answer_is_not_replaced(client):
    async def say(caller):
        if len(caller.upstream.requests) == 2:
            caller.send(b"HTTP/1.1 2")
            caller.close()
        else:
            caller.send(whole(b"x"))

    async with upstream_that(say) as upstream:
        await (await post(client, upstream)).read()
        with pytest.raises(ProviderError, match="broke off"):
            await post(client, upstream)
        assert len(upstream.requests) == 2


async def test_a_kept_connection_that_was_closed_meanwhile_is_not_tried(client):
    async def say(caller):
        caller.send(whole(b"x"))

    async with upstream_that(say) as upstream:
        await (await post(client, upstream)).read()
        upstream.callers[0].close()
        await next(iter(client.connections)).lost
        assert await (await post(client, upstream)).read() == b"x"
        assert len(upstream.requests) == 2


@pytest.mark.parametrize("head", [chunked(), b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"])
async def test_an_answer_cut_in_the_middle_is_an_error_after_what_came(client, head):
    async def say(caller):
        caller.send(head, b"2\r\nab")
        caller.close()

    async with upstream_that(say) as upstream:
        response = await post(client, upstream, name="mine")
        assert (await response.next()).endswith(b"ab")
        with pytest.raises(ProviderError, match="mine broke off its answer"):
            await response.next()


async def test_an_upstream_that_does_not_begin_is_late(client):
    async def say(caller):
        await caller.silence()

    async with upstream_that(say) as upstream:
        with pytest.raises(ProviderError, match=r"mine did not begin to answer within 0\.05 s") as caught:
            await post(client, upstream, name="mine", first_byte_s=0.05)
        assert caught.value.status == 504
        await upstream.callers[0].gone.wait()


async def test_an_upstream_that_is_silent_in_the_middle_is_late(client):
    async def say(caller):
        caller.send(chunked(), chunk(b"a"))
        await caller.silence()

    async with upstream_that(say) as upstream:
        response = await post(client, upstream, name="mine", idle_s=0.05)
        assert await response.next() == b"a"
        with pytest.raises(ProviderError, match=r"mine was silent for 0\.05 s in the middle") as caught:
            await response.next()
        assert caught.value.status == 504
        await upstream.callers[0].gone.wait()


async def test_an_upstream_that_drips_is_late_in_all(client):
    async def say(caller):
        caller.send(chunked())
        while not caller.writer.is_closing():
            caller.send(chunk(b"a"))
            await asyncio.sleep(0.01)

    async with upstream_that(say) as upstream:
        response = await post(client, upstream, name="mine", idle_s=0.2, total_s=0.3)
        with pytest.raises(ProviderError, match=r"mine took longer than 0\.3 s"):
            await response.read()


async def test_the_clocks_of_a_kept_connection_begin_anew(client):
    async def say(caller):
        await asyncio.sleep(0.03)
        caller.send(whole(b"x"))

    async with upstream_that(say) as upstream:
        for _ in range(5):
            assert await (await post(client, upstream, first_byte_s=0.1, total_s=0.1)).read() == b"x"
        assert len(upstream.callers) == 1


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
)
async def test_what_is_not_http_is_an_error(client, answer):
    async def say(caller):
        caller.send(answer)

    async with upstream_that(say) as upstream:
        with pytest.raises(ProviderError, match="mine sent what is not HTTP"):
            await post(client, upstream, name="mine")


async def test_a_huge_head_is_refused(client):
    async def say(caller):
        caller.send(b"HTTP/1.1 200 OK\r\n")
        while not caller.writer.is_closing():
            caller.send(b"x-filler: " + b"y" * 1000 + b"\r\n")
            await asyncio.sleep(0)

    async with upstream_that(say) as upstream:
        with pytest.raises(ProviderError, match="the head of its answer is over the limit"):
            await post(client, upstream)


async def test_a_body_over_the_limit_is_refused():
    async def say(caller):
        caller.send(whole(b"x" * 1_000_000))

    async with upstream_that(say) as upstream, Client(body_bytes=50_000) as client:
        response = await post(client, upstream)
        with pytest.raises(ProviderError, match="the body of its answer is over the limit"):
            await response.read()


async def test_a_second_answer_to_one_question_is_not_taken_for_the_next(client):
    async def say(caller):
        caller.send(whole(b"mine"), b"HTTP/1.1 200 OK\r\nContent-Le")

    async with upstream_that(say) as upstream:
        for _ in range(2):
            assert await (await post(client, upstream)).read() == b"mine"
        assert len(upstream.callers) == 2


async def test_an_upstream_is_not_read_faster_than_it_is_taken(client):
    sent = 0

    async def say(caller):
        nonlocal sent
        caller.send(chunked())
        for _ in range(400):
            caller.send(chunk(b"x" * 100_000))
            await caller.writer.drain()
            sent += 100_000
        caller.send(LAST_CHUNK)

    async with upstream_that(say) as upstream:
        response = await post(client, upstream, idle_s=0.1)
        await asyncio.sleep(0.3)  # longer than the upstream may be silent: it is not its fault
        assert sent < 20_000_000  # the rest waits there, or in the sockets
        assert response._size < HIGH_WATER + 300_000
        assert sum(map(len, await all_of(response))) == 40_000_000


async def test_giving_up_closes_the_connection(client):
    async def say(caller):
        caller.send(chunked(), chunk(b"a"))
        await caller.silence()

    async with upstream_that(say) as upstream:
        response = await post(client, upstream)
        await response.close()
        await upstream.callers[0].gone.wait()
        assert not client.connections


async def test_closing_after_the_end_keeps_the_connection(client):
    async def say(caller):
        caller.send(whole(b"x"))

    async with upstream_that(say) as upstream:
        for _ in range(2):
            await (await post(client, upstream)).close()
        assert len(upstream.callers) == 1


@pytest.mark.parametrize("begun", [b"", chunked()])
async def test_cancelling_closes_the_connection(client, begun):
    async def say(caller):
        caller.send(begun)
        await caller.silence()

    async with upstream_that(say) as upstream:

        async def call():
            return await (await post(client, upstream)).read()

        task = asyncio.ensure_future(call())
        while not upstream.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        await upstream.callers[0].gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_nobody_there_is_an_error(client):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(ProviderError, match="mine cannot be reached: ConnectionRefusedError") as caught:
            await client.request("GET", f"http://127.0.0.1:{port}/", name="mine")
        assert caught.value.status == 502


@pytest.mark.parametrize("url", ["ftp://x/", "x", "http://", "http://a:b@x/", "http://x:99999/"])
async def test_a_url_that_cannot_be_called_is_the_callers_mistake(client, url):
    with pytest.raises(UsageError, match="no URL that can be called"):
        await client.request("GET", url)


@pytest.mark.parametrize("value", [b"a\r\nx-two: 2", b"a\rb", b"a\n"])
async def test_a_header_with_a_line_break_is_not_sent(client, value):
    with pytest.raises(UsageError, match="line break"):
        await client.request("GET", "http://127.0.0.1:9/", [(b"x-one", value)])


async def test_a_redirect_is_an_answer_and_not_followed(client):
    async def say(caller):
        caller.send(whole(b"", "Location: /elsewhere", status="302 Found"))

    async with upstream_that(say) as upstream:
        response = await post(client, upstream)
        assert (response.status, response.headers["location"], len(upstream.requests)) == (302, "/elsewhere", 1)


async def test_a_name_goes_to_the_address_that_was_checked(client):
    async def say(caller):
        caller.send(whole(b"x"))

    async with upstream_that(say) as upstream:
        url = upstream.url.replace("127.0.0.1", "nowhere.invalid")
        assert await (await client.request("GET", url, address="127.0.0.1")).read() == b"x"
        assert b"host: nowhere.invalid:" in upstream.requests[0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "certificate.pem"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*command, *files, *subject], check=True, capture_output=True)
    return folder


@pytest.fixture
def tls(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    return context


async def test_tls_to_an_upstream_that_is_trusted(certificate, tls):
    async def say(caller):
        caller.send(whole(b"secret"))

    trusting = ssl.create_default_context(cafile=certificate / "certificate.pem")
    async with upstream_that(say, tls) as upstream, Client(tls=trusting) as client:
        for _ in range(2):
            url = upstream.url.replace("127.0.0.1", "localhost")
            assert await (await client.request("GET", url, address="127.0.0.1")).read() == b"secret"
        assert len(upstream.requests) == 2


async def test_tls_to_an_upstream_that_is_not_trusted(client, tls):
    async def say(caller):
        caller.send(whole(b"secret"))

    async with upstream_that(say, tls) as upstream:
        with pytest.raises(ProviderError, match="cannot be reached: SSLCertVerificationError"):
            await client.request("GET", upstream.url)
