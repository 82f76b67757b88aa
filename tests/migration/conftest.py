import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from doorstep.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "doorstep.db") as store:
        yield store


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows to a file, an object on each line; a text is a line as it is."""

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        file = tmp_path / name
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
        return file

    return write
