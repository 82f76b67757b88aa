"""What an answer must look like, as a Lark grammar in the form of llguidance: calls of tools, or JSON of a schema.

Words that the model has as control tokens stand in it by their ids, everything else as text.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from doorstep.renderers.answers import Marks
from doorstep.renderers.tools import Format, Harmony, Json, Maybe, Schemas, Shape, Words

_ANY = r"/(.|\n)*/"


def json_schema(schema: Mapping[str, Any]) -> str:
    """Return a schema for llguidance: JSON in one line, as Python writes it; small models lose themselves in space."""
    form = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return json.dumps({**schema, "x-guidance": form})


class Grammar:
    """Collects the rules of one grammar. ``controls`` are the ids of the model's control words."""

    def __init__(self, controls: Mapping[str, int]) -> None:
        self._controls = controls
        self._words = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or r"(?!)")
        self._rules: list[str] = []

    def text(self, start: str) -> str:
        """Return the grammar of what ``start`` says."""
        return "\n".join([f"start: {start}", *self._rules])

    def says(self, words: str) -> str:
        """Return what stands for these very words."""
        found, at = [], 0
        for match in self._words.finditer(words):
            found += [_quoted(words[at : match.start()]), f"<[{self._controls[match[0]]}]>"]
            at = match.end()
        return " ".join(part for part in (*found, _quoted(words[at:])) if part)

    def json(self, schema: Mapping[str, Any]) -> str:
        """Return what stands for JSON of a schema."""
        return self._rule(f"%json {json_schema(schema)}")

    def until(self, end: str) -> str:
        """Return what stands for any text up to ``end``, and that."""
        if self._words.match(end):
            return f"{_ANY} {self.says(end)}"
        return self._rule(_ANY, f"[suffix={_quoted(end)}]")

    def thought(self, marks: Marks, *, inside: bool) -> str:
        """Return what stands for a thought: its rest where the prompt has opened it, else one that may come."""
        rest = f'{self.until(marks.closing)} "\\n\\n"?'
        return rest if inside else f'("\\n"? {self.says(marks.opening)} {rest})?'

    def calls(self, form: Format, tools: Schemas, *, several: bool) -> str:
        """Return what stands for a call of one of the tools, or several."""
        shapes = [self._shape(form.shape(name, schema)) for name, schema in tools.items()]
        call = self._rule(" | ".join(shapes))
        more = f"({self.says(form.joint)} {call})*" if several and form.joint is not None else ""
        return " ".join(part for part in (self.says(form.first), call, more, self.says(form.last)) if part)

    def words_or(self, calls: str, form: Format) -> str:
        """Return what stands for words, or calls; words may come before calls where their mark is no text."""
        if isinstance(form, Harmony):
            return f"({calls} | {self.says('<|channel|>final<|message|>')} {_ANY})"
        if form.bare:
            return rf"({calls} | /([^{{ \n](.|\n)*)?/)"
        if form.opening in self._controls:
            return f"{_ANY} ({calls})?"
        opening = re.escape(form.opening).replace("/", r"\/")
        words = self._rule(rf"{_ANY} & ~/(.|\n)*{opening}(.|\n)*/", name="WORDS")
        return f"({calls} | {words})"

    def _shape(self, shape: Shape) -> str:
        found: list[str] = []
        for part in shape:
            match part:
                case str():
                    found.append(self.says(part))
                case Json():
                    found.append(self.json(part.schema))
                case Words() if part.choices:
                    found.append(f"({' | '.join(map(_quoted, part.choices))}) {self.says(part.end)}")
                case Words():
                    found.append(self.until(part.end))
                case Maybe():
                    found.append(f"({self._shape(part.shape)})?")
        return " ".join(part for part in found if part)

    def _rule(self, body: str, attributes: str = "", name: str = "part") -> str:
        name = f"{name}_{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""
