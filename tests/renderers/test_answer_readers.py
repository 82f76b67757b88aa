"""Reading answers: the same parts whatever the pieces, nothing lost, and words as early as can be."""

import pytest
from chat_families import SCHEMAS
from hypothesis import given
from hypothesis import strategies as st

from doorstep.renderers.answers import HarmonyReader, MarkedReader, Marks, Part, Reader, Thought
from doorstep.renderers.tools import Call, Harmony, Hermes, Llama, Mistral

THINK = Marks("<think>", "</think>")
CALL = '{"name": "weather", "arguments": {}}'
BITS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    CALL,
    "[TOOL_CALLS]",
    f"[{CALL}]",
    "{",
    "<",
    "a b",
    "\n",
    " ",
]
MESSAGES = [
    "<|channel|>",
    "analysis",
    "final",
    " to=functions.weather",
    "<|message|>",
    "<|end|>",
    "<|start|>",
    "{}",
    "a\n",
]


def readers() -> list[Reader]:
    forms = (None, Hermes(), Llama(), Mistral())
    return [MarkedReader(marks, form, SCHEMAS, stance) for marks in (None, THINK) for form in forms
            for stance in (None, "open", "closed") if marks or stance is None]  # fmt: skip


def joined(parts: list[Part]) -> list[Part]:
    """Return parts with neighbours of one kind as one."""
    found: list[Part] = []
    for part in parts:
        if found and isinstance(part, str) and isinstance(found[-1], str):
            found[-1] += part
        elif found and isinstance(part, Thought) and isinstance(found[-1], Thought):
            found[-1] = Thought(found[-1].text + part.text)
        else:
            found.append(part)
    return found


def read(reader: Reader, pieces: list[str]) -> list[Part]:
    return joined([part for piece in pieces for part in reader.add(piece)] + reader.end())


@given(st.lists(st.sampled_from(BITS), max_size=10), st.integers(1, 9))
def test_the_pieces_do_not_matter(bits, size):
    text = "".join(bits)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    for whole, bitwise in zip(readers(), readers(), strict=True):
        assert read(bitwise, pieces) == read(whole, [text])


@given(st.lists(st.sampled_from(MESSAGES), max_size=12), st.integers(1, 9))
def test_the_pieces_of_messages_do_not_matter(bits, size):
    text = "".join(bits)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert read(HarmonyReader(Harmony(), SCHEMAS), pieces) == read(HarmonyReader(Harmony(), SCHEMAS), [text])


@given(st.lists(st.sampled_from(BITS), max_size=10))
def test_no_letter_is_lost(bits):
    text = "".join(bits)
    for reader in readers():
        said = "".join(
            part if isinstance(part, str) else part.text if isinstance(part, Thought) else CALL
            for part in read(reader, [text])
        )
        assert said.count("a b") == text.count("a b")


def test_words_come_as_soon_as_they_can_be_no_mark():
    reader = MarkedReader(THINK, Hermes(), SCHEMAS)
    assert reader.add("so ") == ["so"]
    assert (reader.add("<to"), reader.unsure) == ([], True)
    assert reader.add("p>") == [" <top>"]
    assert (reader.speaking, reader.unsure) == (True, False)


@pytest.mark.parametrize("stance", [None, "closed"])
def test_line_ends_behind_a_thought_are_no_words(stance):
    text = "\n\nhello\n\n"
    reader = MarkedReader(THINK, None, {}, stance)
    assert read(reader, [text if stance else f"<think>x</think>{text}"])[-1] == "hello\n\n"


def test_messages_are_told_apart():
    said = "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>final<|message|>Yes"
    assert read(HarmonyReader(Harmony(), {}), list(said)) == [Thought("Hm"), "Yes"]


def test_a_message_to_nobody_that_is_known_is_text():
    said = "<|channel|>commentary to=browser<|message|>{}<|call|>"
    assert read(HarmonyReader(Harmony(), {}), [said]) == ["{}"]


def test_a_call_in_a_thought_is_a_thought():
    said = f"<think><tool_call>{CALL}</tool_call></think><tool_call>{CALL}</tool_call>"
    assert read(MarkedReader(THINK, Hermes(), SCHEMAS), [said])[1:] == [Call("weather", "{}")]
