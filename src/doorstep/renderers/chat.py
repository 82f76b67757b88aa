"""Chat messages to a model's tokens, and sampled tokens to text, by the template and tokenizer in its folder.

Owns the rule that what people write never becomes a control token: a message that says ``<|end|>`` is spelt out as
text, while the template's own ``<|end|>`` is the token. Knows no engine and no wire format, and needs no torch.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, cast

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from doorstep import ids
from doorstep.errors import BadInput, UsageError

ROLES = ("system", "developer", "user", "assistant", "tool")
HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # how the tokenizer shows bytes that are not UTF-8 (yet)


class ChatRenderer:
    """Messages to tokens and back for the model in ``folder``."""

    def __init__(self, folder: Path) -> None:
        tokenizer = _read(folder / "tokenizer.json")
        config = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        source = _template(folder, config)
        self.digest = ids.digest([ids.digest(tokenizer), source])
        self._whole = _tokenizer(tokenizer, folder)
        self._plain = _plain_tokenizer(tokenizer, folder)
        self._controls = _controls(self._whole)
        self._control_ids = frozenset(self._controls.values())
        self._control = _pattern(self._whole)
        self._nonce = secrets.token_hex(8)  # a message cannot guess how its control words are hidden
        self._marks = {word: f"x{self._nonce}n{number}x" for word, number in self._controls.items()}
        self._template = _environment().from_string(source)
        self._names = {key: _token_text(config[key]) for key in config if key.endswith("_token") and config[key]}
        self.stop_ids = self._stop_ids(folder)
        self._bytes = _byte_alphabet() if "ByteLevel" in json.dumps(json.loads(tokenizer).get("decoder")) else None

    def prompt(self, messages: Iterable[Mapping[str, Any]]) -> list[int]:
        """Return the ids of a conversation, up to where the assistant is to answer."""
        hidden = [self._hide(message, place) for place, message in enumerate(messages)]
        try:
            text = self._template.render(messages=hidden, add_generation_prompt=True, **self._names)
        except jinja2.TemplateError as error:
            raise BadInput("messages", f"the model's chat template does not take them: {error}") from None
        return self._tokens(text)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; control words in it are text like any other."""
        found: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(found):
            word = next(word for word, number in self._controls.items() if number in found)
            raise UsageError(f"this model's tokenizer cannot write {word!r} as plain text; leave it out of the message")
        return found

    def answer(self, sampled: Sequence[int]) -> str:
        """Return the text of sampled ids, without control tokens."""
        return cast("str", self._whole.decode(list(sampled), skip_special_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that one id stands for; a character may be spread over several ids."""
        word = self._whole.id_to_token(token) or ""
        if self._bytes is not None and word not in self._controls:
            return bytes(self._bytes[character] for character in word)
        return cast("str", self._whole.decode([token], skip_special_tokens=False)).encode()

    def decoder(self) -> "Decoder":
        """Return a decoder for one answer that comes id by id."""
        return Decoder(self.answer)

    def _tokens(self, text: str) -> list[int]:
        """Tokenise a rendered template: its control words are tokens, all between them is text."""
        found: list[int] = []
        start = 0
        for match in self._control.finditer(text):
            found += self._encode_shown(text[start : match.start()])
            found.append(self._controls[match[match.lastindex or 0]])
            start = match.end()
        return found + self._encode_shown(text[start:])

    def _encode_shown(self, text: str) -> list[int]:
        if self._nonce in text:
            for word, mark in self._marks.items():
                text = text.replace(mark, word)
        return self.encode(text) if text else []

    def _hide(self, message: Mapping[str, Any], place: int) -> dict[str, Any]:
        """Return a message whose control words are replaced by marks that only this renderer knows."""
        where = f"messages[{place}]"
        role = message.get("role")
        if role not in ROLES:
            raise BadInput(f"{where}.role", f"{role!r} is no role; there are {', '.join(ROLES)}")
        if message.get("tool_calls") or role == "tool":
            raise BadInput(f"{where}.tool_calls", "the local model takes no tool calls yet; a hosted model does")
        text = content_text(message.get("content"), where)
        return {"role": role, "content": self._control.sub(self._mark, text)}

    def _mark(self, match: re.Match[str]) -> str:
        word = match[match.lastindex or 0]
        return match[0].replace(word, self._marks[word])

    def _stop_ids(self, folder: Path) -> list[int]:
        """Return the ids that end an answer; the first is the one that the template ends messages with."""
        found: list[int] = []
        if end := self._names.get("eos_token"):
            found.append(self._whole.token_to_id(end))
        for name in ("generation_config.json", "config.json"):
            given = _json(folder / name).get("eos_token_id") if (folder / name).exists() else None
            found += given if isinstance(given, list) else [] if given is None else [given]
        stops = list(dict.fromkeys(token for token in found if token is not None))
        if not stops:
            raise UsageError(f"{folder}: no end token. Set eos_token in tokenizer_config.json.")
        return stops


class Decoder:
    """The text of one answer as its ids come; never half a character."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = 0  # ids before this one are known to the reader
        self._context = 0  # decoding starts here: a little before what is new, since text depends on its left side

    def add(self, token: int) -> str:
        """Return the text that this id completes, perhaps none."""
        self._ids.append(token)
        return self._new(final=False)

    def end(self) -> str:
        """Return what is left when no more ids come."""
        return self._new(final=True)

    def _new(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._context : self._shown])
        now = self._decode(self._ids[self._context :])
        if len(now) <= len(before) or (now.endswith(HALF_A_CHARACTER) and not final):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return now[len(before) :]


def content_text(content: Any, where: str) -> str:
    """Return the text of a message's content: a string, or a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadInput(f"{where}.content", "give a string or a list of text parts")
    for place, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadInput(f"{where}.content[{place}]", f"the local model takes text parts, not {kind!r}")
    return "".join(part["text"] for part in content)


def _tokenizer(data: bytes, folder: Path) -> Any:
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_buffer(data)
    except Exception as error:  # tokenizers raises plain Exception
        raise UsageError(f"{folder}/tokenizer.json cannot be used: {error}") from None


def _plain_tokenizer(data: bytes, folder: Path) -> Any:
    """Return the tokenizer without its control tokens, so that their words are text."""
    parts = json.loads(data)
    parts["added_tokens"] = [token for token in parts.get("added_tokens", []) if token["content"].isspace()]
    parts |= {"post_processor": None, "truncation": None, "padding": None}
    return _tokenizer(json.dumps(parts).encode(), folder)


def _controls(tokenizer: Any) -> dict[str, int]:
    """Return the added tokens by their words, less runs of spaces: some tokenizers have them; they control nothing."""
    added = tokenizer.get_added_tokens_decoder().items()
    return {token.content: number for number, token in added if not token.content.isspace()}


def _pattern(tokenizer: Any) -> re.Pattern[str]:
    """Return what finds control words, one group each, the longest first; some swallow the space beside them."""
    tokens = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.content.isspace()]
    space = r"\s*"
    words = [
        f"{space if token.lstrip else ''}({re.escape(token.content)}){space if token.rstrip else ''}"
        for token in sorted(tokens, key=lambda token: -len(token.content))
    ]
    return re.compile("|".join(words) or r"(?!)")


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the chat template: a file of its own wins over the one in the tokenizer's settings, as in transformers."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text("utf-8")
    given = config.get("chat_template")
    if isinstance(given, list):
        given = next((entry["template"] for entry in given if entry.get("name") == "default"), None)
    if not given:
        raise UsageError(f"{folder}: no chat template. Put it into tokenizer_config.json or chat_template.jinja there.")
    return str(given)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return Jinja as transformers sets it up for chat templates."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _token_text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); a model's folder has it.") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(_read(path))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    return value


def _byte_alphabet() -> dict[str, int]:
    """Return how byte-level tokenizers write bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
