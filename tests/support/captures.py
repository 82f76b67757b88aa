"""Captures of finished calls, with what matters left to the test."""

from typing import Any

from doorstep.gateway.capture import Capture
from doorstep.gateway.chat import Sampled, Trace


def capture(number: int = 0, **changes: Any) -> Capture:
    values: dict[str, Any] = {
        "call_id": f"call_{number:04}",
        "run_id": "run_1",
        "dialect": "openai.chat",
        "requested_model": "tiny",
        "served_model": "tiny",
        "provider": "local",
        "adapter": None,
        "stream": False,
        "started_us": 1_000,
        "first_us": 1_500,
        "ended_us": 2_000,
        "status": 200,
        "error": None,
        "request": b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}',
        "response": b'{"choices":[{"index":0,"message":{"content":"ho"},"finish_reason":"stop"}]}',
        "trace": Trace(
            prompt=[1, 2], samples=[Sampled([3], [-0.5])], policy="p", tokenizer_digest="t", cpu_seconds=3600.0
        ),
    }
    return Capture(**(values | changes))
