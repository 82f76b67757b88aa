"""Constrained decoding: what may come next so that an answer fits a JSON schema, a regular expression or a grammar.

``llguidance`` does the work, over the bytes of the model's own tokenizer. Compiled grammars are kept; each sample goes
on in a copy. End tokens are allowed only where the grammar may end.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from doorstep.engine.api import Grammar
from doorstep.errors import EngineError

# Between the parts of JSON: as compact or indented writing has it. Without a bound small models go on in blank lines.
SPACE = r"( ?|\n {0,32})"
KEPT = 64  # compiled grammars; a service has few, and the largest take some megabytes


class Matcher:
    """How far one answer has come in a grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> "Matcher":
        """Return another that goes on from here."""
        return Matcher(self._matcher.deep_copy())

    def allowed(self) -> bytes:
        """Return which tokens may come next: a bit for each id, lowest first."""
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise EngineError(f"the grammar cannot be followed any further: {_first_line(self._matcher.get_error())}")
        if not any(mask):
            raise EngineError("the grammar asks for characters that no token of this model writes; allow others")
        return mask

    def accept(self, token: int) -> bool:
        """Take an allowed token; return whether the answer goes on."""
        return self._matcher.consume_token(token) and not self._matcher.is_stopped()


def compiled(grammar: Grammar, folder: str, vocabulary: int, ends: tuple[int, ...]) -> Matcher:
    """Return a matcher at the beginning of an answer; EngineError says what is wrong with the grammar."""
    return _compiled(grammar, folder, vocabulary, ends).copy()


@lru_cache(maxsize=KEPT)
def _compiled(grammar: Grammar, folder: str, vocabulary: int, ends: tuple[int, ...]) -> Matcher:
    tokenizer = _tokenizer(folder, vocabulary, ends)
    program = _program(grammar)
    if problem := LLMatcher.validate_grammar(program, tokenizer):
        schema = json.loads(grammar.text) if grammar.kind == "json_schema" else None
        raise EngineError(f"the {_KINDS[grammar.kind]} cannot be followed{_place(schema, tokenizer)}: {problem}")
    return Matcher(LLMatcher(tokenizer, program, log_level=0))


@lru_cache(maxsize=4)
def _tokenizer(folder: str, vocabulary: int, ends: tuple[int, ...]) -> LLTokenizer:
    try:
        text = (Path(folder) / "tokenizer.json").read_text()
        # A model without an end token gets one beyond its vocabulary, which is never sampled.
        return LLTokenizer(text, n_vocab=vocabulary + (not ends), eos_token=list(ends) or [vocabulary])
    except (OSError, ValueError) as error:
        raise EngineError(f"{folder} has no tokenizer.json that grammars can be followed with: {error}") from error


_KINDS = {"json_schema": "JSON schema", "regex": "regular expression", "lark": "Lark grammar"}


def _program(grammar: Grammar) -> str:
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return LLMatcher.grammar_from_lark(grammar.text)
    try:
        schema = json.loads(grammar.text)
        # A pattern would count before what the schema itself says of space.
        formed = isinstance(schema, dict) and "x-guidance" in schema
        return LLMatcher.grammar_from_json_schema(schema, defaults=None if formed else {"whitespace_pattern": SPACE})
    except ValueError as error:
        raise EngineError(f"the JSON schema cannot be read: {error}") from error


def _place(schema: Any, tokenizer: LLTokenizer) -> str:
    """Return where in a schema its smallest part is that cannot be followed: `` at properties.age``."""
    path: list[str] = []
    while part := _broken_part(schema, tokenizer):
        path += part[0]
        schema = part[1]
    return f" at {'.'.join(path)}" if path else ""


def _broken_part(schema: Any, tokenizer: LLTokenizer) -> tuple[list[str], Any] | None:
    for keys, part in _parts(schema):
        program = LLMatcher.grammar_from_json_schema(part)
        problem = LLMatcher.validate_grammar(program, tokenizer)
        if problem and "$ref" not in problem:  # a reference leads out of the part, which says nothing about it
            return keys, part
    return None


def _parts(schema: Any) -> list[tuple[list[str], Any]]:
    """Return the schemas right inside a schema, and the keys that lead to them."""
    if not isinstance(schema, dict):
        return []
    found = [([key], value) for key, value in schema.items() if key in {"items", "additionalProperties", "not"}]
    for key in ("properties", "$defs", "definitions", "patternProperties"):
        if isinstance(schema.get(key), dict):
            found += [([key, name], part) for name, part in schema[key].items()]
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(schema.get(key), list):
            found += [([key, str(index)], part) for index, part in enumerate(schema[key])]
    return [(keys, part) for keys, part in found if isinstance(part, dict)]


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
