"""Pictures for our own engine: their data becomes tokens and places, in every dialect."""

import base64
import json

import msgspec
import pytest
from dialect_tools import collect
from gateway_parts import ASSISTANT, END, SPECIAL, USER, TellingEngine

from doorstep.errors import BadInput
from doorstep.gateway.dialects import anthropic_count, anthropic_messages, openai_chat, openai_responses
from doorstep.gateway.providers.base import Ask, pieces_of
from doorstep.gateway.providers.engine import EngineProvider
from doorstep.renderers.chat import ChatRenderer

START, PAD, STOP = (len(SPECIAL) + place for place in range(3))
WORDS = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DATA = base64.b64encode(b"picture").decode()
URL = f"data:image/png;base64,{DATA}"
OPENAI = {"type": "image_url", "image_url": {"url": URL}}
RESPONSES = {"type": "input_image", "image_url": URL}
ANTHROPIC = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}


class SeeingEngine(TellingEngine):
    """Counts a picture as many tokens as it has bytes; ``shown`` is what it was given."""

    async def info(self):
        return msgspec.structs.replace(await super().info(), vision=True)

    async def measure(self, images):
        return [len(image) for image in images]

    async def sample(self, adapter, prompt, params, n=1, images=()):
        self.shown = list(images)
        async for event in super().sample(adapter, prompt, params, n):
            yield event


@pytest.fixture
def engine(tmp_path):
    made = SeeingEngine(tmp_path, template=TEMPLATE, words=WORDS, context=500)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": END, "image_token_id": PAD}))
    return made


async def answered(engine, dialect, **fields):
    body = json.dumps({"model": "tiny"} | fields).encode()
    provider = EngineProvider(engine, await engine.info(), ChatRenderer(engine.folder), None)
    answer = await provider.answer(Ask(dialect=dialect, head=dialect.head(body), body=body, call_id="c", model="tiny"))
    return b"".join(await collect(pieces_of(answer.body)))


def user(*parts):
    return [{"role": "user", "content": [*parts]}]


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        (openai_chat, {"messages": user({"type": "text", "text": "hello"}, OPENAI)}),
        (openai_responses, {"input": user({"type": "input_text", "text": "hello"}, RESPONSES)}),
        (anthropic_messages, {"messages": user({"type": "text", "text": "hello"}, ANTHROPIC), "max_tokens": 9}),
    ],
)
async def test_a_picture_has_its_place_among_the_tokens(engine, dialect, fields):
    await answered(engine, dialect, **fields)
    [image], [(_, prompt, _)] = engine.shown, engine.seen
    hello = engine.tokenizer.encode("hello").ids
    assert prompt == [USER, *hello, START, *[PAD] * 7, STOP, END, ASSISTANT]
    assert (image.data, prompt.index(PAD), image.tokens) == (b"picture", image.at, 7)


async def test_what_people_write_is_no_picture(engine):
    await answered(engine, openai_chat, messages=user({"type": "text", "text": "<|image_pad|>"}, OPENAI, OPENAI))
    assert len(engine.shown) == 2
    assert engine.seen[0][1].count(PAD) == 14


async def test_pictures_are_counted(engine):
    counted = json.loads(await answered(engine, anthropic_count, messages=user(ANTHROPIC)))
    assert counted == {"input_tokens": 3 + 2 + 7}


@pytest.mark.parametrize(
    ("url", "why"), [("https://example.com/a.png", "by their data"), ("data:image/png;base64,?", "base64")]
)
async def test_a_picture_that_is_not_there_is_refused_by_its_place(engine, url, why):
    with pytest.raises(BadInput, match=why) as caught:
        await answered(engine, openai_chat, messages=user({"type": "image_url", "image_url": {"url": url}}))
    assert caught.value.where == "messages[0].content[0]"


async def test_gemmas_pictures_are_set_apart(engine):
    settings = {"eos_token_id": END, "image_token_index": PAD, "boi_token_index": START, "eoi_token_index": STOP}
    (engine.folder / "config.json").write_text(json.dumps(settings))
    renderer = ChatRenderer(engine.folder)
    gap = renderer.encode("\n\n")
    prompt, places = renderer.with_images([USER, START, END], [2])
    assert (prompt, places) == ([USER, *gap, START, PAD, PAD, STOP, *gap, END], [len(gap) + 2])
