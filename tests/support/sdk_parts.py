"""What the tests with other people's SDKs ask for: a tool, a form for the answer, a picture, a document, a sound."""

import base64

from pydantic import BaseModel, ConfigDict

from doorstep.gateway.providers.fake_media import picture, sound

HELLO = [{"role": "user", "content": "hello there, world"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
PNG, WAV = picture(b"a picture"), sound(b"a sound")
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"


class Order(BaseModel):
    """A form for an answer."""

    model_config = ConfigDict(extra="forbid")

    customer: str
    pieces: int
    urgent: bool


ORDER = Order(customer="text", pieces=1, urgent=True)  # as the fake provider fills it in


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64_of(data)}"
