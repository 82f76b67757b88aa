"""Chat messages to a model's tokens, and sampled tokens to text, by the template and tokenizer in its folder.

Messages and tools have the form that chat templates take, which is that of OpenAI's chat. Owns the rule that what
people write never becomes a control token: a message that says ``<|end|>`` is spelt out as text, while the template's
own ``<|end|>`` is the token. Knows no engine and no wire format, and needs no torch.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from doorstep import ids
from doorstep.errors import BadInput, UsageError
from doorstep.renderers.answers import HarmonyReader, MarkedReader, Marks, Reader, Stance
from doorstep.renderers.grammar import Grammar
from doorstep.renderers.tools import Harmony, Hermes, Schemas, format_of, spelt, taught

ROLES = ("system", "developer", "user", "assistant", "tool")
HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # how the tokenizer shows bytes that are not UTF-8 (yet)


class ChatRenderer:
    """Messages to tokens and back for the model in ``folder``.

    ``thinks``: its template knows of thoughts. ``stills``: they can be switched off. ``efforts``: it takes how much.
    """

    def __init__(self, folder: Path) -> None:
        tokenizer = _read(folder / "tokenizer.json")
        config = _json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        source, with_tools = _templates(folder, config)
        self.digest = ids.digest([ids.digest(tokenizer), source, *([] if with_tools == source else [with_tools])])
        self._whole = _tokenizer(tokenizer, folder)
        self._plain = _plain_tokenizer(tokenizer, folder)
        self._controls = _controls(self._whole)
        self._control_ids = frozenset(self._controls.values())
        self._control = _pattern(self._whole)
        self._nonce = secrets.token_hex(8)  # a message cannot guess how its control words are hidden
        self._marks = {word: f"x{self._nonce}n{number}x" for word, number in self._controls.items()}
        environment = _environment()
        self._template = environment.from_string(source)
        self._tool_template = environment.from_string(with_tools)
        self._names = {key: _token_text(config[key]) for key in config if key.endswith("_token") and config[key]}
        self.stop_ids = self._stop_ids(folder)
        self._bytes = _byte_alphabet() if "ByteLevel" in json.dumps(json.loads(tokenizer).get("decoder")) else None
        self._image = self._image_place(folder)
        variables = meta.find_undeclared_variables(environment.parse(with_tools))
        self._developers = "developer" in source
        self._takes_tools = "tools" in variables
        self._takes_calls = "tool_calls" in with_tools
        self._form = format_of(with_tools, self._controls) if self._takes_tools or self._takes_calls else Hermes()
        self._thoughts = _thoughts(with_tools, self._controls)
        self.thinks = self._thoughts is not None
        self.stills = not variables.isdisjoint(("enable_thinking", "thinking"))
        self.efforts = "reasoning_effort" in variables
        words = (self._form.opening, self._form.closing, *self._form.inner, *_words_of(self._thoughts))
        self._shown = {self._controls[word]: word for word in words if word in self._controls}

    def prompt(
        self,
        messages: Iterable[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        **settings: Any,
    ) -> list[int]:
        """Return the ids of a conversation, up to where the assistant is to answer; an image is one id.

        ``settings`` are what the template knows beside, such as ``enable_thinking``.
        """
        found: Sequence[Mapping[str, Any]] = [self._taken(message, place) for place, message in enumerate(messages)]
        try:
            found, tools = self._hide(found), self._hide(tools)
        except RecursionError:
            raise BadInput("messages", "what is in them or in the tools is nested too deeply") from None
        if not self._takes_tools:
            found = taught(found if self._takes_calls else spelt(found), tools, self._form)
        given = {"messages": found, "tools": tools or None, "add_generation_prompt": True}
        template = self._tool_template if tools else self._template
        try:
            text = template.render(**{**self._names, **settings, **given})
        except (jinja2.TemplateError, TypeError) as error:  # a template may join what is no text
            raise BadInput("messages", f"the model's chat template does not take them: {error}") from None
        return self._tokens(text)

    def with_images(self, prompt: Sequence[int], sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return a prompt with room for its images, ``sizes`` ids each, and where they begin."""
        found: list[int] = []
        places: list[int] = []
        for token in prompt:
            if self._image is None or token != self._image.mark or len(places) == len(sizes):
                found.append(token)
                continue
            found += self._image.before
            places.append(len(found))
            found += [self._image.token] * sizes[len(places) - 1] + self._image.after
        if len(places) < len(sizes):
            raise BadInput("messages", f"the model's chat template gives {len(sizes)} images {len(places)} places")
        return found, places

    def reader(self, prompt: Sequence[int], tools: Schemas) -> Reader:
        """Return what reads an answer to a prompt; without tools, calls are words like any other."""
        if isinstance(self._form, Harmony):
            return HarmonyReader(self._form, tools)
        form = self._form if tools else None
        return MarkedReader(self._thoughts, form, tools, self._thought(prompt))

    def grammar(
        self,
        prompt: Sequence[int],
        tools: Schemas,
        *,
        must_call: bool = False,
        several: bool = True,
        answer: Mapping[str, Any] | None = None,
    ) -> str:
        """Return what an answer must look like, in Lark: calls, or JSON of the schema ``answer``, or any words.

        The model may think first where the prompt leaves it to it.
        """
        grammar = Grammar(self._controls)
        thought = self._thought(prompt)
        parts: list[str] = []
        if self._thoughts and thought != "closed":
            parts.append(grammar.thought(self._thoughts, inside=thought == "open"))
        calls = grammar.calls(self._form, tools, several=several) if tools else ""
        if must_call:
            parts.append(calls)
        elif answer is None:
            parts.append(grammar.words_or(calls, self._form))
        else:
            begin = grammar.says("<|channel|>final<|message|>") if isinstance(self._form, Harmony) else ""
            body = f"{begin} {grammar.json(answer)}"
            parts.append(f"({calls} | {body})" if calls else body)
        return grammar.text(" ".join(parts))

    def _thought(self, prompt: Sequence[int]) -> Stance:
        """Return whether a prompt ends in a thought or behind one."""
        if self._thoughts is None or isinstance(self._form, Harmony):
            return None
        end = self._whole.decode(list(prompt[-16:]), skip_special_tokens=False).rstrip()
        if end.endswith(self._thoughts.opening):
            return "open"
        return "closed" if end.endswith(self._thoughts.closing) else None

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text; control words in it are text like any other."""
        found: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        if not self._control_ids.isdisjoint(found):
            word = next(word for word, number in self._controls.items() if number in found)
            raise UsageError(f"this model's tokenizer cannot write {word!r} as plain text; leave it out of the message")
        return found

    def text(self, text: str) -> list[int]:
        """Return the ids of a text that stands alone: with what the model has before any, and no control words."""
        return [*self._whole.encode("").ids, *self.encode(text)]

    def answer(self, sampled: Sequence[int]) -> str:
        """Return the text of sampled ids, without control tokens."""
        return cast("str", self._whole.decode(list(sampled), skip_special_tokens=True))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that one id stands for; a character may be spread over several ids."""
        word = self._whole.id_to_token(token) or ""
        if self._bytes is not None and self._bytes.keys() >= set(word) and word not in self._controls:
            return bytes(self._bytes[character] for character in word)
        return cast("str", self._whole.decode([token], skip_special_tokens=False)).encode()

    def decoder(self) -> "Decoder":
        """Return a decoder for one answer that comes id by id; the marks of thoughts and calls are in its text."""
        return Decoder(self.answer, self._shown)

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

    def _taken(self, message: Mapping[str, Any], place: int) -> dict[str, Any]:
        """Return a message as templates take it."""
        where = f"messages[{place}]"
        role = message.get("role")
        if role not in ROLES:
            raise BadInput(f"{where}.role", f"{role!r} is no role; there are {', '.join(ROLES)}")
        if role == "developer" and not self._developers:
            role = "system"
        content = _content(message.get("content"), where, images=self._image is not None)
        taken: dict[str, Any] = {"role": role, "content": content}
        if role == "tool":
            taken |= {
                "name": message.get("name"),
                "tool_call_id": self._form.call_id(message.get("tool_call_id") or ""),
            }
        if message.get("tool_calls"):
            taken["tool_calls"] = [self._taken_call(call, where) for call in message["tool_calls"]]
        if message.get("reasoning_content"):
            key = "thinking" if isinstance(self._form, Harmony) else "reasoning_content"
            if key == "reasoning_content" or not content:  # GPT-OSS's template takes one of the two
                taken[key] = message["reasoning_content"]
        return taken

    def _taken_call(self, call: Any, where: str) -> dict[str, Any]:
        """Return a call as templates take it: its arguments are an object, where the model wrote one."""
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadInput(f"{where}.tool_calls", "a call has a function with a name and arguments")
        arguments = function.get("arguments") or "{}"
        if self._form.text_arguments:
            arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        elif isinstance(arguments, str):
            arguments = _object(arguments)
        named = {"id": self._form.call_id(call["id"])} if isinstance(call.get("id"), str) else {}
        return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}

    def _hide(self, value: Any) -> Any:
        """Return a value whose control words are replaced by marks that only this renderer knows."""
        if isinstance(value, str):
            return self._control.sub(self._mark, value)
        if isinstance(value, Mapping):
            return {self._hide(key): self._hide(item) for key, item in value.items()}
        return [self._hide(item) for item in value] if isinstance(value, list | tuple) else value

    def _mark(self, match: re.Match[str]) -> str:
        word = match[match.lastindex or 0]
        return match[0].replace(word, self._marks[word])

    def _image_place(self, folder: Path) -> "_ImagePlace | None":
        """Return what an image becomes, where a model takes images; Gemma's templates write what is to be around it."""
        config = _json(folder / "config.json") if (folder / "config.json").exists() else {}
        token = config.get("image_token_id", config.get("image_token_index"))
        if token is None:
            return None
        begin, end = config.get("boi_token_index"), config.get("eoi_token_index")
        if begin is None or end is None:
            return _ImagePlace(token, token, [], [])
        gap = self.encode("\n\n")
        return _ImagePlace(begin, token, [*gap, begin], [end, *gap])

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


class _ImagePlace(NamedTuple):
    """``mark`` is what the template writes for an image: it becomes ``token``, many times, between two others."""

    mark: int
    token: int
    before: list[int]
    after: list[int]


class Decoder:
    """The text of one answer as its ids come; never half a character. ``shown`` are ids that ``decode`` leaves out."""

    def __init__(self, decode: Callable[[Sequence[int]], str], shown: Mapping[int, str]) -> None:
        self._decode = decode
        self._words = shown
        self._begin()

    def _begin(self) -> None:
        self._ids: list[int] = []
        self._shown = 0  # ids before this one are known to the reader
        self._context = 0  # decoding starts here: a little before what is new, since text depends on its left side

    def add(self, token: int) -> str:
        """Return the text that this id completes, perhaps none."""
        if token in self._words:
            text = self.end() + self._words[token]
            self._begin()
            return text
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


def _templates(folder: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the chat template, and the one where there are tools, which is the same where a model has but one.

    A file of its own wins over the one in the tokenizer's settings, as in transformers.
    """
    file = folder / "chat_template.jinja"
    given = file.read_text("utf-8") if file.exists() else config.get("chat_template")
    named = {entry.get("name"): entry["template"] for entry in given} if isinstance(given, list) else {"default": given}
    found = named.get("default")
    if not found:
        raise UsageError(f"{folder}: no chat template. Put it into tokenizer_config.json or chat_template.jinja there.")
    return str(found), str(named.get("tool_use", found))


def _environment() -> ImmutableSandboxedEnvironment:
    """Return Jinja as transformers sets it up for chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """``{% generation %}``, which marks what the assistant says for training; here it only says it."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return what stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **settings)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _thoughts(source: str, controls: Mapping[str, int]) -> Marks | None:
    """Return the marks of a model's thoughts, where its template or its tokenizer knows any."""
    if "<|channel|>" in controls:
        return Marks("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
    for opening, closing in (("[THINK]", "[/THINK]"), ("<think>", "</think>")):
        if opening in controls or opening in source:
            return Marks(opening, closing)
    return None


def _words_of(marks: Marks | None) -> tuple[str, ...]:
    return () if marks is None else (marks.opening, marks.closing)


def _content(content: Any, where: str, *, images: bool) -> str | list[dict[str, Any]]:
    """Return a message's content: text, or parts where an image is among them."""
    if not images or not isinstance(content, list) or not any(_is_image(part) for part in content):
        return content_text(content, where)
    return [
        {"type": "image"} if _is_image(part) else {"type": "text", "text": content_text([part], where)}
        for part in content
    ]


def _object(text: str) -> dict[str, Any] | str:
    """Return the object that JSON text is; other text stays what it is."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, dict) else text


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image"


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
