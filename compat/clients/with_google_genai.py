# /// script
# dependencies = ["google-genai==3.6.1"]
# ///
"""Google Gen AI SDK: ``generateContent``, streamed and not, with pictures; it passes to services that speak it."""

from checks import HELLO, URL, begin, one, same
from google import genai
from google.genai import errors, types

SAID = "as the fake provider says"
client = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=URL))


def answer(model) -> None:
    asked = types.GenerateContentConfig(system_instruction="be brief", max_output_tokens=50)
    found = client.models.generate_content(model=model, contents=HELLO, config=asked)
    same((found.text, found.usage_metadata.total_token_count), (SAID, 6))


def stream(model) -> None:
    chunks = client.models.generate_content_stream(model=model, contents=HELLO)
    same("".join(chunk.text for chunk in chunks), SAID)


def chat(model) -> None:
    talk = client.chats.create(model=model)
    talk.send_message(HELLO)
    same(talk.send_message("and now?").text, SAID)


def picture(model) -> None:
    asked = types.GenerateContentConfig(response_modalities=["TEXT", "IMAGE"])
    found = client.models.generate_content(model=model, contents="a cat", config=asked)
    same([part.inline_data.mime_type for part in found.parts if part.inline_data], ["image/png"])


def error(model) -> None:
    try:
        client.models.generate_content(model=f"{model}-not-there", contents=HELLO)
    except errors.ClientError as failure:
        same((failure.code, failure.status), (404, "NOT_FOUND"))
    else:
        raise AssertionError("there was no error")


begin("Google Gen AI SDK", "google-genai")
for way, name in (("itself", "fake/echo"), ("google", "google/fake/echo")):
    for check in (answer, stream, chat, picture, error):
        one(f"generateContent / {way} / {check.__name__}", check, str, name)
