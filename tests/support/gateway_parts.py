"""A model folder without weights, an engine that says what it is told, and a real server around them."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from doorstep.config import ServeSettings, Settings
from doorstep.engine.api import Finished, LoraSpec, ModelInfo, SampleParams, Token
from doorstep.server import create_app, uvicorn_config

SPECIAL = ["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"]
SYSTEM, USER, ASSISTANT, END = 1, 2, 3, 5
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_folder(folder: Path, template: str = TEMPLATE, words: Sequence[str] = ()) -> Path:
    """Write tokenizer and settings of a byte-level model, as the shipped base has them; ``words`` are more controls."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*SPECIAL, *words],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world, hello there, the end"] * 5, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": END}))
    return folder


class TellingEngine:
    """Says ``text`` and its end token to every prompt, token by token, each with another log-probability.

    ``seen`` has (adapter, prompt, parameters) of every sampling; clear ``gate`` to make it wait after each token.
    """

    def __init__(
        self,
        folder: Path,
        text: str = "hello world",
        template: str = TEMPLATE,
        words: Sequence[str] = (),
        context: int = 128,
    ) -> None:
        self.folder = make_folder(folder, template, words)
        self.context = context
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.text = text
        self.seen: list[tuple[str | None, list[int], SampleParams]] = []
        self.said = 0  # tokens that were taken
        self.closed = 0
        self.gate = threading.Event()
        self.gate.set()
        self.fails_after: tuple[int, Exception] | None = None
        self.on_loss: list[Callable[[], None]] = []

    async def info(self) -> ModelInfo:
        return ModelInfo(
            name="tiny",
            folder=str(self.folder),
            digest="d" * 64,
            tokenizer_digest="t" * 64,
            parameters=1,
            vocabulary=300,
            max_context=self.context,
        )

    @property
    def answer_ids(self) -> list[int]:
        return [*self.tokenizer.encode(self.text).ids, END]

    async def sample(
        self, adapter: str | None, prompt: list[int], params: SampleParams, n: int = 1, images: Any = ()
    ) -> AsyncIterator[Token | Finished]:
        self.seen.append((adapter, prompt, params))
        try:
            for step, token in enumerate(self.answer_ids[: params.max_tokens]):
                if self.fails_after and step == self.fails_after[0]:
                    raise self.fails_after[1]
                for index in range(n):
                    yield Token(index, token, -0.5 * (step + 1))
                    self.said += 1
                while not self.gate.is_set():  # noqa: ASYNC110 - set by the test's thread
                    await asyncio.sleep(0.005)
            for index in range(n):
                yield Finished(index, "stop" if len(self.answer_ids) <= params.max_tokens else "length")
        finally:
            self.closed += 1

    async def load(self, adapter: str, folder: str, optimizer: bool) -> LoraSpec:
        return LoraSpec()

    async def drop_adapter(self, adapter: str) -> None: ...

    async def cpu_seconds(self) -> float:
        return 0.0

    async def close(self) -> None: ...


@contextmanager
def serving(
    settings: Settings, engine: Any = None, app: Any = None, http: str | None = None, start_engine: Any = None
) -> Iterator[str]:
    """Serve Doorstep (or another application) on a free port of 127.0.0.1 in a thread of its own; give the address.

    ``http``: by that protocol of uvicorn, as any ASGI server would, in place of the fast lane. ``start_engine``: makes
    the engine in the server's own loop.
    """

    async def start(_settings: Settings) -> Any:
        return engine

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    if app:
        config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    else:
        config = uvicorn_config(create_app(settings, url, start_engine or start), timeout_graceful_shutdown=1)
        config.http = http or config.http
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        assert server.started
        yield url
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def settings_for(data: Path, *, model: str | None = "tiny", host: str = "127.0.0.1", **changes: Any) -> Settings:
    return Settings(serve=ServeSettings(data=str(data), model=model, host=host), **changes)


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Return the condition's first true value."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if found := condition():
            return found
        pause.wait(0.01)
    raise AssertionError("it did not come to that in time")


def hang_up(address: str, body: dict[str, Any], when: Callable[[], Any]) -> None:
    """Make a call and close the connection as soon as ``when`` is true."""
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: {len(data)}\r\n\r\n"
    port = int(address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + data)
        wait_for(when)
