"""A workflow: one short Python file that says how the company's job is put to a model and read back.

The file ``workflows/NAME/workflow.py`` may define any of these; each has a default:

- ``SYSTEM: str``: the system message;
- ``render(item) -> str``: the input as the user message;
- ``parse(text) -> value``: the model's answer as a value, ``ValueError`` when it is unusable;
- ``finish(value, item) -> value``: the business rules, after the model; ``ValueError`` sends it to a person;
- ``answer(expected, item) -> str``: the answer that the model should have given, for training;
- ``grade(value, expected) -> float | dict``: 1.0 is right; a dict has a value per field and ``exact``;
- ``load(path) -> item``: a file as an input;
- ``rows(value) -> list[dict]`` and ``COLUMNS``: the result as lines of a table;
- ``MAX_TOKENS: int``: longest answer.

``item`` is the ``input`` of a record. This module knows no model, store or grade.
"""

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from doorstep import ids
from doorstep.errors import NotFound, UsageError
from doorstep.workflows.inputs import load_file

RECORDS = "records.jsonl"
MODULE = "workflow.py"


class Workflow(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded workflow. ``version`` is the digest of the folder's Python; changed code is another version."""

    name: str
    folder: Path
    version: str
    system: str
    max_tokens: int
    columns: list[str] | None
    render: Callable[[Any], str]
    parse: Callable[[str], Any]
    finish: Callable[[Any, Any], Any]
    answer: Callable[[Any, Any], str]
    grade: Callable[[Any, Any], float | dict[str, float]] | None
    load: Callable[[Path], Any]
    rows: Callable[[Any], list[dict[str, Any]]]

    @property
    def records(self) -> Path:
        """The file of records."""
        return self.folder / RECORDS

    def messages(self, item: Any) -> list[dict[str, str]]:
        """Return the conversation that asks a model for this input's answer."""
        user = {"role": "user", "content": self.render(item)}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]


def find(name: str, root: Path | None = None) -> Workflow:
    """Load ``workflows/NAME`` below ``root`` (the working folder), or the folder ``NAME`` itself."""
    base = root or Path()
    for folder in (base / "workflows" / name, base / name):
        if (folder / MODULE).exists() or (folder / RECORDS).exists():
            return load_workflow(folder)
    raise NotFound(f"No workflow '{name}' here. Make one: doorstep init {name} --from RECORDS.jsonl")


def load_workflow(folder: Path) -> Workflow:
    """Load the workflow in a folder; what its file does not define has the default."""
    path = folder / MODULE
    module = _module(path) if path.exists() else ModuleType("workflow")
    get = module.__dict__.get
    return Workflow(
        name=folder.resolve().name,
        folder=folder,
        version=ids.digest([(file.name, file.read_text("utf-8")) for file in sorted(folder.glob("*.py"))]),
        system=get("SYSTEM", ""),
        max_tokens=get("MAX_TOKENS", 160),
        columns=get("COLUMNS"),
        render=get("render", render_plain),
        parse=get("parse", parse_plain),
        finish=get("finish", _unchanged),
        answer=_answer(get("answer", answer_plain)),
        grade=get("grade"),
        load=get("load", load_file),
        rows=get("rows", rows_plain),
    )


def render_plain(item: Any) -> str:
    """Text as it is; an object as ``field: value`` lines."""
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        return "\n".join(f"{key}: {_plain(value)}" for key, value in item.items())
    return _plain(item)


def parse_plain(text: str) -> Any:
    """JSON where the answer is JSON, else the text itself; an empty answer is unusable."""
    stripped = text.strip()
    if not stripped:
        raise ValueError("the answer is empty")
    if stripped[0] in "{[":
        return json.loads(stripped)
    return stripped


def answer_plain(expected: Any) -> str:
    """Text as it is, anything else as compact JSON."""
    return _plain(expected)


def rows_plain(value: Any) -> list[dict[str, Any]]:
    """One table line per result; what is no object is in the column ``answer``."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list) and all(isinstance(line, dict) for line in value):
        return value
    return [{"answer": value}]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _unchanged(value: Any, item: Any) -> Any:  # noqa: ARG001 - the signature of finish
    return value


def _answer(function: Callable[..., str]) -> Callable[[Any, Any], str]:
    """Accept ``answer(expected)`` as well as ``answer(expected, item)``."""
    if len(inspect.signature(function).parameters) > 1:
        return function
    return lambda expected, _item: function(expected)


def _module(path: Path) -> ModuleType:
    """Import the file under a name of its own; its folder is importable while it loads.

    Modules of the folder are forgotten after, since another workflow may have a ``catalogue.py`` of its own.
    """
    name = f"doorstep_workflow_{ids.digest(str(path.resolve()))[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module  # dataclasses and others look a class's module up by its name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
        for other in [key for key, held in sys.modules.items() if key != name and _lies_in(held, folder)]:
            del sys.modules[other]
    return module


def _lies_in(module: ModuleType, folder: str) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and str(Path(file).parent) == folder
