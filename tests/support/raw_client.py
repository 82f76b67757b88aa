"""A client of raw bytes: what no library would send, and answers read to the byte."""

import http.client
import io
import json
import socket
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

PATH = "/v1/chat/completions"


class Said(NamedTuple):
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Line:
    """A connection to a server of this machine."""

    def __init__(self, address: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.said = self.socket.makefile("rb")

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.said.close()
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        """Send pieces, each by itself."""
        for piece in pieces:
            self.socket.sendall(piece)

    def answer(self) -> Said:
        """Read the next answer; ``http.client.HTTPException`` or ``ConnectionError`` for one that breaks off."""
        return _read(self.said)

    def rest(self) -> bytes:
        """Read all that comes until the server closes the connection."""
        return self.said.read()


def call(model: str, *, path: str = PATH, head: str = "", **fields: Any) -> bytes:
    """Return a whole chat request; ``head`` are further header lines, each with its end."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]} | fields).encode()
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body


def ask(address: str, *pieces: bytes) -> Said:
    """Send one request on a connection of its own."""
    with Line(address) as line:
        line.send(*pieces)
        return line.answer()


def talk(address: str, *pieces: bytes) -> list[Said]:
    """Send requests, the last of which ends the connection, and return all answers."""
    with Line(address) as line:
        line.send(*pieces)
        said = line.rest()
    file, answers = io.BytesIO(said), []
    while file.tell() < len(said):
        answers.append(_read(file))
    return answers


def _read(file: BinaryIO) -> Said:
    answer = http.client.HTTPResponse(_Source(file))  # type: ignore[arg-type]
    answer.begin()
    body = answer.read()
    return Said(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)


class _Source:
    """What answers are read from; a reader of one answer does not close it for the next."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.readline, self.readinto = file.read, file.readline, file.readinto  # type: ignore[attr-defined]

    def makefile(self, _mode: str) -> "_Source":
        return self

    def flush(self) -> None: ...

    def close(self) -> None: ...
