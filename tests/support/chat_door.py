"""A small OpenAI-compatible chat endpoint for tests: a real server that answers by a rule."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Rule = Callable[[dict[str, Any]], Response | str]  # the request's body to an answer, or to any response


def completion(text: str, logprobs: list[float] | None = None, model: str = "m") -> dict[str, Any]:
    content = None if logprobs is None else {"content": [{"token": "t", "logprob": value} for value in logprobs]}
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": content}
    return {"model": model, "choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


def failure(status: int, message: str = "no", param: str | None = None) -> Response:
    return JSONResponse({"error": {"message": message, "param": param, "type": "t", "code": None}}, status)


class ChatDoor:
    """Answers by ``rule``; ``bodies`` is what was asked, by run id in the order of arrival."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        path = "/runs/{run_id}/v1/chat/completions"
        self.app = Starlette(routes=[Route(path, self._complete, methods=["POST"])])
        self.url = ""

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append((request.path_params["run_id"], body))
        answer = self.rule(body)
        return answer if isinstance(answer, Response) else JSONResponse(completion(answer, [-0.1, -0.1]))


@contextmanager
def open_door(rule: Rule) -> Iterator[ChatDoor]:
    door = ChatDoor(rule)
    server = uvicorn.Server(uvicorn.Config(door.app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    door.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield door
    finally:
        server.should_exit = True
        thread.join()
