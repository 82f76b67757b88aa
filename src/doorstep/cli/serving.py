"""``doorstep serve``: one command that starts every configured part."""

import gc
import os
import resource
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
import uvicorn

from doorstep import config
from doorstep.cli import local_server
from doorstep.cli.output import say
from doorstep.errors import UsageError
from doorstep.hub import model_folder

Host = Annotated[str | None, typer.Option(help="Address to listen on. Beyond 127.0.0.1 keys are needed.")]
Port = Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")]
Data = Annotated[str | None, typer.Option(help="Folder of the store, checkpoints and captures.")]
Model = Annotated[
    str | None,
    typer.Option(help="Local model: 'tiny' (shipped), a folder, a name on the Hugging Face hub, or '' for none."),
]
Threads = Annotated[int | None, typer.Option(help="The most threads of the engine; 0: all cores.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: doorstep serve --port 8000    then    OPENAI_BASE_URL=http://127.0.0.1:8000/v1")(serve)


def serve(
    host: Host = None, port: Port = None, data: Data = None, model: Model = None, threads: Threads = None
) -> None:
    """Serve the gateway and the training service on one address.

    Settings come from doorstep.toml and DOORSTEP_SERVE_… variables; options win over both.
    """
    overrides = {"host": host, "port": port, "data": data, "model": model, "threads": threads}
    settings = config.load(overrides=overrides)
    if settings.serve.model:
        model_folder(settings.serve.model)  # a wrong name is an error of one line, before anything starts
    local_server.claim(settings.data)
    listener = _listen(settings.serve.host, settings.serve.port)
    from doorstep.gateway.keys import new_secret
    from doorstep.server import create_app, uvicorn_config  # loads the parts that only a server needs

    own_key = new_secret()
    host = f"[{settings.serve.host}]" if ":" in settings.serve.host else settings.serve.host
    url = f"http://{host}:{listener.getsockname()[1]}"
    app = create_app(settings, url, own_key=own_key)
    _calm_collector()
    _allow_connections()
    server = uvicorn.Server(uvicorn_config(app, timeout_graceful_shutdown=3))
    if os.environ.get(local_server.WITH_COMMANDS):
        threading.Thread(target=_follow_commands, args=(server, settings.data), daemon=True).start()
    local_server.note_address(settings.data, url, own_key)
    say(
        f"Doorstep on {url}  (data {settings.data.resolve()}, model {settings.serve.model or 'none'}). Ctrl-C stops it."
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn stops in order, then raises the signal once more
    try:
        server.run(sockets=[listener])
    finally:
        local_server.forget_address(settings.data)


def _calm_collector() -> None:
    """Have the garbage collector look at new objects only, and less often: it took a sixth of the gateway's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def _allow_connections() -> None:
    """Raise the limit of open files as far as it goes: each client is one, and so is each upstream."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}. Give another --port, or 0 for a free one."
        ) from None
    return listener


def _follow_commands(server: uvicorn.Server, data: Path) -> None:
    local_server.follow_commands(data)
    server.should_exit = True
