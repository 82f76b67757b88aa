"""A collector that takes OTLP over HTTP, and is away, busy or picky when a test says so."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Collector:
    """``requests`` has (path, headers, body) of what was taken; ``answers`` are the next statuses, 200 after them."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.answers: list[int] = []
        self.asked = 0

    def spans(self) -> list[dict[str, Any]]:
        """The spans that were taken, with their attributes as plain values under ``said``."""
        bodies = [body for path, _, body in self.requests if path == "/v1/traces"]
        inside = [scope for body in bodies for one in body["resourceSpans"] for scope in one["scopeSpans"]]
        return [span | {"said": plain(span["attributes"])} for scope in inside for span in scope["spans"]]

    def points(self, name: str) -> list[dict[str, Any]]:
        """The newest points of a histogram, with their attributes as plain values under ``said``."""
        body = [body for path, _, body in self.requests if path == "/v1/metrics"][-1]
        metrics = body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
        points = [point for one in metrics if one["name"] == name for point in one["histogram"]["dataPoints"]]
        return [point | {"said": plain(point["attributes"])} for point in points]


def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["key"]: _plain(one["value"]) for one in attributes}


def _plain(value: dict[str, Any]) -> Any:
    ((kind, inner),) = value.items()
    if kind == "arrayValue":
        return [_plain(one) for one in inner["values"]]
    return int(inner) if kind == "intValue" else inner


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a collector on 127.0.0.1."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.asked += 1
            status = collector.answers.pop(0) if collector.answers else 200
            if status == 200:
                headers = {name.lower(): value for name, value in self.headers.items()}
                collector.requests.append((self.path, headers, json.loads(gzip.decompress(body))))
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
