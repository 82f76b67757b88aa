"""How families of models write calls of tools: one class each, which finds them in an answer and says what they are.

A model's format follows from its template and its control words. Templates that take no tools are taught the Hermes
form (NousResearch), which Qwen and many others were trained on.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

Schemas = Mapping[str, Mapping[str, Any]]  # of the arguments, by the names of the tools


class Call(msgspec.Struct, frozen=True):
    """The model asks for a tool. ``arguments`` is a JSON object as text."""

    name: str
    arguments: str


class Json(msgspec.Struct, frozen=True):
    """A place for JSON of a schema."""

    schema: Mapping[str, Any]


class Words(msgspec.Struct, frozen=True):
    """A place for any text up to ``end``, which belongs to it; or for one of ``choices``."""

    end: str
    choices: Sequence[str] = ()


class Maybe(msgspec.Struct, frozen=True):
    """What may be left out."""

    shape: "Shape"


Shape = Sequence[str | Json | Words | Maybe]  # what a call looks like, from left to right


class Format(ABC):
    """One family's form. Calls run from ``opening`` to ``closing``, or to the end of the answer where there is none.

    Several calls are ``first``, the calls with ``joint`` between them, and ``last``.
    """

    opening: str
    closing: str | None = None
    inner: tuple[str, ...] = ()  # further words that its models may have as control tokens
    first = ""
    joint: str | None = "\n"  # None: an answer has one call
    last = ""
    text_arguments = False  # whether templates take the arguments of calls as JSON text, not as objects
    bare = False  # whether an answer that begins with ``{`` may be a call

    @abstractmethod
    def read(self, text: str, schemas: Schemas) -> list[Call]:
        """Return the calls in what was found; ``ValueError`` when they cannot be understood."""

    @abstractmethod
    def shape(self, name: str, schema: Mapping[str, Any]) -> Shape:
        """Return what a call of a tool looks like."""

    def call_id(self, given: str) -> str:
        """Return how the template wants the id of a call to be."""
        return given


class Hermes(Format):
    """``<tool_call>{"name": …, "arguments": {…}}</tool_call>``: Hermes, Qwen2.5, Qwen3 and many others."""

    opening = "<tool_call>"
    closing = "</tool_call>"

    def read(self, text: str, schemas: Schemas) -> list[Call]:  # noqa: ARG002
        """Return the one call."""
        return [_call(_loads(_inside(self, text)))]

    def shape(self, name: str, schema: Mapping[str, Any]) -> Shape:
        """Return an object with a name and arguments, between marks."""
        return (f"<tool_call>\n{_named(name, 'arguments')}", Json(schema), "}\n</tool_call>")


class Llama(Format):
    """``{"name": …, "parameters": {…}}``, alone or after ``<|python_tag|>``: Llama 3.1 and later."""

    opening = "<|python_tag|>"
    joint = "; "
    bare = True

    def read(self, text: str, schemas: Schemas) -> list[Call]:
        """Return the calls; without the tag an object is one only when it names a tool that there is."""
        rest, found = text.removeprefix(self.opening).strip(), []
        while rest:
            value, end = _decoder.raw_decode(rest)
            found.append(_call(value))
            rest = rest[end:].lstrip("; \n,")
        if not text.startswith(self.opening) and any(call.name not in schemas for call in found):
            raise ValueError("an object like any other")
        return found

    def shape(self, name: str, schema: Mapping[str, Any]) -> Shape:
        """Return an object with a name and parameters."""
        return (_named(name, "parameters"), Json(schema), "}")


class Mistral(Format):
    """``[TOOL_CALLS][{"name": …, "arguments": {…}}, …]``: Mistral's tokenizers up to version 7."""

    opening = "[TOOL_CALLS]"
    inner = ("[ARGS]", "[CALL_ID]")
    first = "[TOOL_CALLS] ["
    joint = ", "
    last = "]"

    def read(self, text: str, schemas: Schemas) -> list[Call]:  # noqa: ARG002
        """Return the calls, in a list or each after the mark with its name before ``[ARGS]``."""
        found: list[Call] = []
        for part in map(str.strip, text.split(self.opening)[1:]):
            if part.startswith(("[", "{")) and not part.startswith(self.inner):
                value = _loads(part)
                found += map(_call, value if isinstance(value, list) else [value])
            else:
                name, _, arguments = part.partition("[ARGS]" if "[ARGS]" in part else "{")
                arguments = arguments if "[ARGS]" in part else "{" + arguments
                found.append(_call({"name": name.partition("[CALL_ID]")[0].strip(), "arguments": arguments}))
        return found

    def shape(self, name: str, schema: Mapping[str, Any]) -> Shape:
        """Return an object with a name and arguments."""
        return (_named(name, "arguments"), Json(schema), "}")

    def call_id(self, given: str) -> str:
        """Return nine letters or digits, which the templates insist on."""
        return given if re.fullmatch(r"[A-Za-z0-9]{9}", given) else blake2b(given.encode()).hexdigest()[:9]


class MistralNamed(Mistral):
    """``[TOOL_CALLS]NAME[ARGS]{…}``, again for each call: Mistral's tokenizers from version 11 on."""

    first = joint = last = ""

    def shape(self, name: str, schema: Mapping[str, Any]) -> Shape:
        """Return the name and the arguments after their marks."""
        return (f"[TOOL_CALLS]{name}[ARGS]", Json(schema))


class DeepSeek(Format):
    """``<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜>`` between marks: DeepSeek V3.1."""

    opening = first = "<｜tool▁calls▁begin｜>"
    closing = last = "<｜tool▁calls▁end｜>"
    inner = ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
    joint = ""
    text_arguments = True

    _CALL = re.compile("<｜tool▁call▁begin｜>(.*?)<｜tool▁sep｜>(.*?)<｜tool▁call▁end｜>", re.DOTALL)
    _FENCED = re.compile(r"(.*?)\n```json\n(.*)\n```\s*", re.DOTALL)

    def read(self, text: str, schemas: Schemas) -> list[Call]:  # noqa: ARG002
        """Return the calls, of this form or with their arguments in a fence."""
        found: list[Call] = []
        for name, arguments in self._CALL.findall(text):
            if name.strip() == "function" and (fenced := self._FENCED.fullmatch(arguments)):
                name, arguments = fenced.groups()
            found.append(_call({"name": name.strip(), "arguments": arguments}))
        if not found:
            raise ValueError("no whole call")
        return found

    def shape(self, name: str, schema: Mapping[str, Any]) -> Shape:
        """Return the name and the arguments between marks."""
        return (f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>", Json(schema), "<｜tool▁call▁end｜>")


class DeepSeekFenced(DeepSeek):
    """The same with ``function`` before the mark and the arguments in a fence: DeepSeek V3 and R1."""

    joint = "\n"

    def shape(self, name: str, schema: Mapping[str, Any]) -> Shape:
        """Return the name and the fence."""
        begin = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n"
        return (begin, Json(schema), "\n```<｜tool▁call▁end｜>")


class Pairs(Format):
    """Calls with each argument between marks of its own; strings stand there without quotes."""

    opening = "<tool_call>"
    closing = "</tool_call>"
    _NAME: re.Pattern[str]
    _PAIR: re.Pattern[str]

    def read(self, text: str, schemas: Schemas) -> list[Call]:
        """Return the one call; what is a string follows from the tool's schema."""
        inside = _inside(self, text)
        named = self._NAME.match(inside)
        if not named or not named[1] or inside == text.removeprefix(self.opening):
            raise ValueError("no name or no end")
        properties = _properties(schemas.get(named[1], {}))
        pairs = self._PAIR.findall(inside)
        arguments = {key: _value(value, properties.get(key, {})) for key, value in pairs}
        return [Call(named[1], json.dumps(arguments, ensure_ascii=False))]

    def _arguments(self, schema: Mapping[str, Any], before: str, after: str, most: str = "") -> Shape:
        """Return places for the arguments; ``before`` has a place for the name."""
        shape: list[str | Json | Words | Maybe] = []
        for name, wanted in _properties(schema).items():
            place: Json | Words = Json({**wanted, **{key: schema[key] for key in ("$defs",) if key in schema}})
            if wanted.get("type") == "string":
                choices = [str(value) for value in wanted.get("enum", ())]
                place = Words(after, choices)
            one = (before.format(name), place, *(() if isinstance(place, Words) else (after,)), most)
            shape += one if name in schema.get("required", ()) else [Maybe(one)]
        return shape


class Glm(Pairs):
    """``<tool_call>NAME <arg_key>…</arg_key> <arg_value>…</arg_value> </tool_call>``: GLM-4.5 and later."""

    inner = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    _NAME = re.compile(r"\s*([^\s<]*)")
    _PAIR = re.compile(r"<arg_key>\s*(.*?)\s*</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)

    def shape(self, name: str, schema: Mapping[str, Any]) -> Shape:
        """Return the name, then key and value of each argument."""
        arguments = self._arguments(schema, "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>", "\n")
        return (f"<tool_call>{name}\n", *arguments, "</tool_call>")


class QwenCoder(Pairs):
    """``<tool_call><function=NAME><parameter=KEY>…</parameter></function></tool_call>``: Qwen3-Coder, Qwen3.5."""

    _NAME = re.compile(r"\s*<function=([^>\s]*)>")
    _PAIR = re.compile(r"<parameter=([^>\s]*)>\n?(.*?)\n?</parameter>", re.DOTALL)

    def shape(self, name: str, schema: Mapping[str, Any]) -> Shape:
        """Return the name, then each argument."""
        arguments = self._arguments(schema, "<parameter={}>\n", "\n</parameter>\n")
        return (f"<tool_call>\n<function={name}>\n", *arguments, "</function>\n</tool_call>")


class Harmony(Format):
    """``<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}``: GPT-OSS.

    One message is one call, and it ends the answer; ``answers.HarmonyReader`` takes messages apart.
    """

    opening = "<|channel|>"
    joint = None
    inner = ("<|start|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")

    _CALL = re.compile(r"to=functions\.([^\s<]+).*?<\|message\|>(.*)", re.DOTALL)

    def read(self, text: str, schemas: Schemas) -> list[Call]:  # noqa: ARG002
        """Return the call of a message with its header."""
        found = self._CALL.search(text)
        if not found:
            raise ValueError("a message to somebody else")
        return [_call({"name": found[1], "arguments": found[2]})]

    def shape(self, name: str, schema: Mapping[str, Any]) -> Shape:
        """Return a message to the tool."""
        return (f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>", Json(schema))


def format_of(source: str, controls: Collection[str]) -> Format:
    """Return the format of a model by its template, which takes tools, and its control words."""
    by_control: Sequence[tuple[str, type[Format]]] = (
        ("<|channel|>", Harmony),
        ("[ARGS]", MistralNamed),
        ("[TOOL_CALLS]", Mistral),
        ("<｜tool▁calls▁begin｜>", DeepSeekFenced if "```json" in source else DeepSeek),
    )
    for word, form in by_control:
        if word in controls:
            return form()
    if "<arg_key>" in source:
        return Glm()
    if "<function=" in source:
        return QwenCoder()
    if "<|python_tag|>" in controls and "<tool_call>" not in source:
        return Llama()
    return Hermes()


# Teaching models whose template takes no tools


def taught(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], form: Format
) -> list[Mapping[str, Any]]:
    """Return messages that explain the tools to the model first."""
    if not tools:
        return list(messages)
    shape = form.shape("<function-name>", {})
    example = "".join(part if isinstance(part, str) else "<arguments-object>" for part in shape)
    lesson = _LESSON.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools), example)
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [{**first, "content": f"{first['content']}\n\n{lesson}"}, *messages[1:]]
    return [{"role": "system", "content": lesson}, *messages]


def spelt(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return messages with calls and results as text in the Hermes form, for templates that know neither."""
    return [_spelt(message) for message in messages]


_LESSON = """# Tools

You may call one or more functions to help with the request. Their signatures are in <tools></tools>:
<tools>
{}
</tools>

To call a function, write its name and a JSON object with its arguments, like this:
{}"""


def _spelt(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    texts = [message["content"]] if message["content"] else []
    for call in message["tool_calls"]:
        function = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        texts.append(f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>")
    return {"role": "assistant", "content": "\n".join(texts)}


# JSON as models write it

_decoder = json.JSONDecoder(strict=False)  # models put line ends into strings as they are


def _loads(text: str) -> Any:
    return _decoder.decode(text.strip())


def _inside(form: Format, text: str) -> str:
    return text.removeprefix(form.opening).removesuffix(form.closing or "")


def _named(name: str, arguments: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{arguments}": '


def _call(value: Any) -> Call:
    """Return the call that an object is."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError("no object with a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _loads(arguments or "{}")
    if not isinstance(arguments, dict):
        raise ValueError("arguments that are no object")
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))


def _properties(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the schemas of an object's parts; ``True``, which stands for anything, as an empty one."""
    found = schema.get("properties")
    parts = found.items() if isinstance(found, dict) else ()
    return {name: part if isinstance(part, dict) else {} for name, part in parts}


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    if schema.get("type") == "string":
        return text
    try:
        return _loads(text)
    except ValueError:
        return text
