"""A Hugging Face hub of one model on 127.0.0.1: as much of its HTTP as a download asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


@contextmanager
def hub(name: str, folder: Path) -> Iterator[str]:
    """Serve a folder as the model of a name; yields the address."""
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
    api = f"/api/models/{name}"
    answers = {
        f"{api}/revision/main": {"id": name, "sha": COMMIT, "siblings": [{"rfilename": each} for each in files]},
        f"{api}/tree/{COMMIT}": [
            {"type": "file", "path": each, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for each, data in files.items()
        ],
    }
    contents = {f"/{name}/resolve/{COMMIT}/{each}": data for each, data in files.items()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            data = contents[path] if path in contents else json.dumps(answers.get(path, {})).encode()
            self.send_response(200 if path in contents or path in answers else 404)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        do_HEAD = do_GET  # noqa: N815 - the name that the server looks for

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
