"""Small models of each family: control words, a template of its shape, and a call as its models write it."""

from pathlib import Path
from typing import NamedTuple

from gateway_parts import make_folder


class Family(NamedTuple):
    words: list[str]  # its control words beside those of every folder
    template: str
    said: str  # an answer with words and a call of ``weather`` with {"city": "Oslo", "days": 2}


CALLED = {"city": "Oslo", "days": 2}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SCHEMAS = {"weather": WEATHER["function"]["parameters"]}

_TURN = "{{ '<|' + m.role + '|>' }}{{ m.content }}"
_HERMES_CALLS = (
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
_ASK = "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
_TOOLS = "{% if tools %}<|system|>{% for t in tools %}{{ t | tojson }}{% endfor %}<|end|>{% endif %}"
_BEGIN = _TOOLS + "{% for m in messages %}" + _TURN

QWEN = Family(
    ["<tool_call>", "</tool_call>", "<think>", "</think>"],
    _BEGIN
    + _HERMES_CALLS
    + _ASK
    + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>',
)
LLAMA = Family(
    ["<|python_tag|>"],
    _BEGIN
    + '{% for c in m.tool_calls or [] %}{"name": "{{ c.function.name }}", "parameters": '
    + "{{ c.function.arguments | tojson }}}{% endfor %}"
    + _ASK,
    '{"name": "weather", "parameters": {"city": "Oslo", "days": 2}}',
)
MISTRAL = Family(
    ["[TOOL_CALLS]", "[INST]", "[/INST]"],
    _BEGIN
    + "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    + "[TOOL_CALLS] [{{ c.function | tojson }}]{% endfor %}"
    + _ASK,
    'Let me see.[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}]',
)
MISTRAL_NAMED = Family(
    ["[TOOL_CALLS]", "[ARGS]"],
    _BEGIN
    + "{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
    + "{% endfor %}"
    + _ASK,
    'Let me see.[TOOL_CALLS]weather[ARGS]{"city": "Oslo", "days": 2}',
)
_DEEPSEEK = [
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
]
DEEPSEEK = Family(
    [*_DEEPSEEK, "<think>", "</think>"],
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}{% for m in messages %}"
    + _TURN
    + "{% for c in m.tool_calls or [] %}{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + c['function']['name'] + "
    + "'<｜tool▁sep｜>' + c['function']['arguments'] + '<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}{% endfor %}"
    + _ASK
    + "{{ '<think>' if thinking else '</think>' }}",
    "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
    '{"city": "Oslo", "days": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
)
DEEPSEEK_FENCED = Family(
    _DEEPSEEK,
    "{% for m in messages %}"
    + _TURN
    + "{% for c in m.tool_calls or [] %}{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>' + "
    + "c['function']['name'] + '\n```json\n' + c['function']['arguments'] + '\n```<｜tool▁call▁end｜>"
    + "<｜tool▁calls▁end｜>' }}{% endfor %}"
    + _ASK,
    "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
    '{"city": "Oslo", "days": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
)
GLM = Family(
    ["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    _BEGIN
    + "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}\n"
    + "{% for k, v in c.function.arguments.items() %}"
    + "<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}"
    + "</tool_call>{% endfor %}"
    + _ASK,
    "Let me see.\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
    "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>",
)
QWEN_CODER = Family(
    ["<tool_call>", "</tool_call>"],
    _BEGIN
    + "{% for c in m.tool_calls or [] %}<tool_call>\n<function={{ c.function.name }}>\n"
    + "{% for k, v in c.function.arguments.items() %}"
    + "<parameter={{ k }}>\n{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}"
    + "</function>\n</tool_call>{% endfor %}"
    + _ASK,
    "Let me see.\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
)
HARMONY = Family(
    ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|return|>"],
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}{% if tools %}"
    "{% for t in tools %}{{ t.function | tojson }}{% endfor %}{% endif %}<|end|>"
    "{% for m in messages %}{% if m.tool_calls %}"
    "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>commentary to=functions.{{ m.tool_calls[0].function.name }} <|constrain|>json"
    "<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
    '<|constrain|>json<|message|>{"city": "Oslo", "days": 2}',
)
TAUGHT = Family(
    [],
    "{% for m in messages %}" + _TURN + _ASK,
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>',
)
FAMILIES = {
    "qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL, "mistral_named": MISTRAL_NAMED, "deepseek": DEEPSEEK,
    "deepseek_fenced": DEEPSEEK_FENCED, "glm": GLM, "qwen_coder": QWEN_CODER, "harmony": HARMONY, "taught": TAUGHT,
}  # fmt: skip


def family_folder(folder: Path, family: Family) -> Path:
    return make_folder(folder, family.template, family.words)
