"""Custom losses that clients traced and sent: one JSON file each, for a session outlives the server that it met."""

from pathlib import Path

import msgspec

from doorstep.engine import graph
from doorstep.errors import EngineError, NotFound, StoreError, UsageError
from doorstep.training.wire import CreateCustomLoss


class CustomLosses:
    """The losses in one folder, by ``SESSION:loss:NUMBER``; each is for its own session."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, request: CreateCustomLoss) -> str:
        """Check and keep a loss; return its id."""
        fields = {"name": request.name, "inputs": request.inputs, "graph": request.graph}
        text = msgspec.json.encode(fields).decode()
        try:
            graph.read(text)
        except EngineError as error:
            raise UsageError(f"create_custom_loss: {error}") from None
        loss_id = f"{request.session_id}:loss:{request.custom_loss_seq_id}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file(loss_id).write_text(text)
        except OSError as error:
            raise StoreError(f"the loss {request.name} cannot be kept ({error.strerror}); make room") from None
        return loss_id

    def get(self, session_id: str, loss_id: str) -> str:
        """Return the graph of a session's loss; raise NotFound when it has none of that id."""
        if loss_id.startswith(f"{session_id}:loss:") and loss_id.rpartition(":")[2].isdecimal():
            file = self._file(loss_id)
            if file.exists():
                return file.read_text()
        raise NotFound(f"there is no custom loss {loss_id!r} in session {session_id}; make it with create_custom_loss")

    def _file(self, loss_id: str) -> Path:
        return self._folder / f"{loss_id}.json"
