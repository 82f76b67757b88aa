"""OpenAI's ``/v1/videos``, whose own service has ended: the format that video jobs have here, whoever makes them."""

import base64
import binascii
import re
from typing import Any

import msgspec

from doorstep.errors import BadInput
from doorstep.gateway.chat import Usage
from doorstep.gateway.dialects import media, multipart, wire
from doorstep.gateway.dialects.base import Head, Reading

NAME = "openai.videos"
PATH = "/v1/videos"
MOST_BYTES = media.MOST_BYTES
SECONDS, SIZE = 4.0, "720x1280"  # where a request does not say, as OpenAI has it
SAMPLING = ("seconds", "size")
MOST_SECONDS = 3600
REFERENCE = "input_reference"
PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}  # and the endings of their files

with_model = media.with_model
is_last = media.is_last
error = media.error

_SIZE = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})", re.ASCII)
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+);base64,(.*)", re.ASCII | re.DOTALL)
_KNOWN = ("model", "prompt", "seconds", "size", REFERENCE)


class Picture(msgspec.Struct, frozen=True):
    """A picture that a video is to begin with."""

    data: bytes
    media_type: str


class VideoRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A video as it is asked for. ``rest`` are fields without a meaning here, for the service that makes it."""

    model: str
    prompt: str
    seconds: float
    width: int
    height: int
    picture: Picture | None = None
    picture_url: str | None = None
    rest: dict[str, Any] = {}

    @property
    def size(self) -> str:
        """The size as it is written."""
        return f"{self.width}x{self.height}"


class Video(msgspec.Struct, frozen=True, kw_only=True):
    """A video job as clients see it."""

    id: str
    object: str = "video"
    model: str
    status: str
    progress: int
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str
    seconds: str
    size: str
    remixed_from_video_id: str | None = None
    error: dict[str, Any] | None = None


def seconds_unit(width: int, height: int) -> str:
    """Return the unit that a video is priced in: its seconds, at its resolution."""
    return f"seconds_{min(width, height)}p"


def head(body: bytes) -> Head:
    """Read what routing needs."""
    asked = read(body)
    return Head(model=asked.model, units={seconds_unit(asked.width, asked.height): asked.seconds})


def read(body: bytes) -> VideoRequest:
    """Read a request, JSON or a form."""
    given, file = _form(body) if multipart.is_form(body) else (wire.decode(_objects, body), None)
    try:
        fields = msgspec.convert(
            {name: given[name] for name in _KNOWN if given.get(name) is not None}, _Fields, strict=False
        )
    except msgspec.ValidationError as error:
        raise media.invalid(error) from None
    size = _SIZE.fullmatch(fields.size)
    if size is None:
        raise BadInput("size", f"{fields.size[:20]!r} is none: write width x height in pixels, such as 1280x720")
    if not 0 < fields.seconds <= MOST_SECONDS:
        raise BadInput("seconds", f"must be more than 0 and at most {MOST_SECONDS}")
    reference = fields.input_reference or _Reference()
    if reference.file_id is not None:
        raise BadInput(f"{REFERENCE}.file_id", "files are not kept here; send the picture itself")
    url = reference.image_url
    picture = file if url is None else _in_address(url)
    if picture is not None and picture.media_type not in PICTURES:
        raise BadInput(REFERENCE, f"must be one of {', '.join(PICTURES)}; it is {picture.media_type}")
    return VideoRequest(
        model=fields.model,
        prompt=fields.prompt,
        seconds=fields.seconds,
        width=int(size[1]),
        height=int(size[2]),
        picture=picture,
        picture_url=url if picture is None else None,
        rest={name: value for name, value in given.items() if name not in _KNOWN},
    )


def read_remix(body: bytes) -> str:
    """Read the prompt of a remix."""
    return media.read(body, _Remix).prompt


def write(video: Video) -> bytes:
    """Write a job."""
    return msgspec.json.encode(video)


def understand(answer: bytes) -> Reading:
    """Read a finished job as it was recorded. Its length is among the call's own units."""
    found = media.whole(answer, _Finished)
    if found is None:
        return Reading(complete=False)
    done = found.status == "completed"
    return Reading(
        finish_reason="stop" if done else None, error=found.error.message if found.error else None, usage=Usage()
    )


def messages(body: bytes) -> list[dict[str, Any]]:
    """Return the prompt, and the picture that came as a file, as a message."""
    return media.message(media.read(body, _Remix).prompt, media.files(body))


def sampling(body: bytes) -> dict[str, Any]:
    """Return the settings of the video, for the record."""
    return media.settings(body, SAMPLING)


class _Remix(msgspec.Struct, frozen=True):
    prompt: str


class _Failed(msgspec.Struct, frozen=True):
    message: str = ""


class _Finished(msgspec.Struct, frozen=True):
    status: str
    error: _Failed | None = None


class _Reference(msgspec.Struct, frozen=True):
    image_url: str | None = None
    file_id: str | None = None


class _Fields(msgspec.Struct, frozen=True):
    """The fields of a request that have a meaning here; in a form all are texts."""

    model: str
    prompt: str
    seconds: float = SECONDS
    size: str = SIZE
    input_reference: _Reference | None = None


_objects = msgspec.json.Decoder(dict[str, Any])


def _form(body: bytes) -> tuple[dict[str, Any], Picture | None]:
    """Return the fields of a form as JSON would have them, and its picture."""
    parts = multipart.parts(body)
    files = {part.name: part for part in parts if part.filename is not None}
    if unknown := files.keys() - {REFERENCE}:
        raise BadInput(min(unknown), f"no file is expected here; only {REFERENCE} is one")
    given: dict[str, Any] = dict(multipart.texts(body, {part.name for part in parts if part.filename is None}))
    if (url := given.pop(f"{REFERENCE}[image_url]", None)) is not None:
        given[REFERENCE] = {"image_url": url}
    file = files.get(REFERENCE)
    if file is None:
        return given, None
    return given, Picture(body[file.start : file.end], file.media_type or "of no type")


def _in_address(url: str) -> Picture | None:
    """Return the picture that an address holds itself; None for one that is elsewhere."""
    if (data := _DATA_URL.fullmatch(url)) is None:
        if not url.startswith(("https://", "http://")):
            raise BadInput(f"{REFERENCE}.image_url", "neither an http address nor a data: address with base64")
        return None
    try:
        return Picture(base64.b64decode(data[2], validate=True), data[1])
    except binascii.Error as error:
        raise BadInput(f"{REFERENCE}.image_url", f"its base64 is damaged: {error}") from None
