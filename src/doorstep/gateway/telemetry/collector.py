"""A collector that takes OTLP over HTTP."""

import gzip
import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import unquote

import msgspec

from doorstep.errors import DoorstepError
from doorstep.gateway.telemetry.otlp import JSON

log = logging.getLogger(__name__)

HEADERS = "OTEL_EXPORTER_OTLP_HEADERS"  # in the environment, since they may hold a key: ``name=value,other=value``
TIMEOUT_S = 10.0
_LATER = (408, 429, 500, 502, 503, 504)
QUICK = 1  # level of compression


class Later(DoorstepError):
    """The collector takes nothing now; ``after_s`` is when it asks to be tried again."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class Collector:
    """Where to send. ``url`` is what OpenTelemetry calls the endpoint, without ``/v1/…``."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._url = url.rstrip("/")
        self._headers = {**headers, "content-type": JSON, "content-encoding": "gzip"}
        self._refused: set[tuple[str, int]] = set()  # said already: some take spans and no metrics

    def send(self, path: str, body: bytes) -> None:
        """Send once; ``Later`` when it may work another time. What the collector will never take is lost, and said."""
        request = urllib.request.Request(
            f"{self._url}{path}", gzip.compress(body, QUICK), dict(self._headers), method="POST"
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                _note_rejected(response.read(100_000))
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(500).decode("utf-8", "replace")
            if error.code in _LATER:
                raise Later(f"{self._url} answers {error.code}", _seconds(error.headers.get("retry-after"))) from None
            if (path, error.code) not in self._refused:
                log.error("%s%s refuses telemetry with %d: %s", self._url, path, error.code, said)
            self._refused.add((path, error.code))
        except (OSError, http.client.HTTPException) as error:
            raise Later(f"{self._url} cannot be reached: {error}") from None


def read_headers(text: str) -> dict[str, str]:
    """Read headers as OpenTelemetry writes them in the environment."""
    pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return {unquote(name).strip(): unquote(value).strip() for name, _, value in pairs}


class _Partial(msgspec.Struct, rename="camel"):
    rejected_spans: int | str = 0
    rejected_data_points: int | str = 0
    error_message: str = ""


class _Answer(msgspec.Struct, rename="camel"):
    partial_success: _Partial = msgspec.field(default_factory=_Partial)


def _note_rejected(answer: bytes) -> None:
    try:
        said = msgspec.json.decode(answer or b"{}", type=_Answer).partial_success
    except msgspec.DecodeError:
        return
    if int(said.rejected_spans) or int(said.rejected_data_points) or said.error_message:
        log.warning("the collector did not take everything: %s", said.error_message)


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isdecimal() else 0.0
