"""Anthropic's counting of tokens: what a prompt would take, without an answer. Pure; knows no provider.

Towards Anthropic bodies pass as they are. For our own models ``count`` gives the prompt to render and ``write`` the
answer. A count is no use of tokens, whatever number it gives.
"""

from typing import Any

import msgspec

from doorstep.gateway.chat import ChatRequest, Usage
from doorstep.gateway.dialects import anthropic_messages, anthropic_requests
from doorstep.gateway.dialects.anthropic_messages import error, messages, with_model
from doorstep.gateway.dialects.base import Head, Reading

__all__ = [
    "NAME", "PATH", "count", "error", "head", "is_last", "messages", "sampling", "understand", "with_model", "write",
]  # fmt: skip

NAME = "anthropic.count_tokens"
PATH = "/v1/messages/count_tokens"


def head(body: bytes) -> Head:
    """Read what routing needs."""
    return Head(model=anthropic_messages.head(body).model, usage=False, most_output=0)


def is_last(piece: bytes) -> bool:  # noqa: ARG001
    """Tell whether a piece of a stream holds its end mark: there are no streams here."""
    return False


def understand(answer: bytes) -> Reading:  # noqa: ARG001
    """Read a finished answer: nothing was said and nothing was used."""
    return Reading(usage=Usage(input_tokens=0, output_tokens=0))


def sampling(body: bytes) -> dict[str, Any]:  # noqa: ARG001
    """Return the sampling settings of a request: nothing is sampled."""
    return {}


def count(body: bytes) -> ChatRequest:
    """Read the prompt that is to be counted."""
    return anthropic_requests.read_prompt(body)


def write(input_tokens: int) -> bytes:
    """Write the answer."""
    return msgspec.json.encode({"input_tokens": input_tokens})
