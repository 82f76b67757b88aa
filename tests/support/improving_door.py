"""What an improvement needs of a running Doorstep, for tests: the training service and chat on a ``TableEngine``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chat_door import completion
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from table_engine import ASK, END, TableEngine
from training_door import application, serving

from doorstep import ids
from doorstep.engine.api import SampleParams, Token
from doorstep.store import Store
from doorstep.training.service import Service
from doorstep.types import Call

WORDS = ["<end>", "<ask>", "fox", "frog", "whale", "crow", "red", "green", "blue", "black", "<other>"]


class WordRenderer:
    """One token a word."""

    @property
    def stop_ids(self) -> Sequence[int]:
        return [END]

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        return [*self.encode(messages[-1]["content"]), ASK]

    def encode(self, text: str) -> list[int]:
        return [WORDS.index(word) if word in WORDS else WORDS.index("<other>") for word in text.split()]

    def answer(self, ids: Sequence[int]) -> str:
        return " ".join(WORDS[token] if token < len(WORDS) else "?" for token in ids if token != END)


@contextmanager
def improving(data: Path, store: Store) -> Iterator[str]:
    """Serve on a free port; each chat call is recorded in the store."""
    engine, renderer = TableEngine(str(data)), WordRenderer()

    def make_app(service: Service) -> Starlette:
        async def chat(request: Request) -> JSONResponse:
            body = await request.json()
            adapter = None if body["model"] == "tiny" else await service.adapter_for(body["model"], None)
            params = SampleParams(max_tokens=body["max_tokens"], temperature=body["temperature"])
            events = [event async for event in engine.sample(adapter, renderer.prompt(body["messages"]), params)]
            tokens = [event for event in events if isinstance(event, Token)]
            store.add(_call(request.path_params["run_id"], body["model"]))
            answer = renderer.answer([token.id for token in tokens])
            return JSONResponse(completion(answer, [token.logprob for token in tokens]))

        app = application(service)
        app.router.routes.append(Route("/runs/{run_id}/v1/chat/completions", chat, methods=["POST"]))
        return app

    with serving(data, lambda: engine, make_app) as url:
        yield url


def _call(run_id: str, model: str) -> Call:
    now = ids.now_us()
    return Call(
        call_id=ids.new_id("call"),
        run_id=run_id,
        dialect="openai.chat",
        requested_model=model,
        served_model=model,
        provider="local",
        started_us=now,
        ended_us=now,
        cost_microusd=1,
        input_tokens=3,
        output_tokens=2,
    )
