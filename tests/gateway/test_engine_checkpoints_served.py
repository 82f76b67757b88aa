"""Checkpoints as models: what the Tinker SDK saved a moment ago, asked by the other SDKs while training goes on."""

import gc
from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
import tinker
from gateway_parts import serving, settings_for
from shipped import Shipped
from tinker import types

from doorstep.config import TINY
from doorstep.gateway.keys import Keys, Terms
from doorstep.renderers.chat import ChatRenderer

# The SDK does not close the connection over which it fetched its settings.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

HELLO = [{"role": "user", "content": "hello"}]
NEW = "blue onions"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def keys(data) -> list[str]:
    made = Keys(data, None, open_to_local=True)
    return [made.create(Terms(name=name))[1] for name in ("owner", "other")]


@pytest.fixture(scope="module")
def address(data, keys) -> Iterator[str]:
    async def start(_settings):
        return await Shipped.start(TINY, "tiny")

    with serving(settings_for(data), start_engine=start) as url:
        yield url


@pytest.fixture(scope="module")
def trained(address, keys) -> Iterator[list[str]]:
    """Give the paths of weights before and after learning what to answer to hello, and leave the run open."""
    service = tinker.ServiceClient(base_url=address, api_key=keys[0])
    run = service.create_lora_training_client(base_model="tiny", rank=8, seed=1).result()
    paths = [run.save_weights_for_sampler("before").result().path]
    renderer = ChatRenderer(TINY)
    prompt = renderer.prompt(HELLO)
    answer = [*renderer.encode(NEW), renderer.stop_ids[0]]
    tokens = [*prompt, *answer]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={"target_tokens": tokens[1:], "weights": [0.0] * (len(prompt) - 1) + [1.0] * len(answer)},
    )
    for _ in range(20):
        run.forward_backward([datum], "cross_entropy")
        run.optim_step(types.AdamParams(learning_rate=0.003)).result()
    yield [*paths, run.save_weights_for_sampler("after").result().path]
    service.close("success").result()
    gc.collect()  # the SDK leaves a connection open, which complains here, where it is expected


@pytest.fixture
def client(address, keys) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key=keys[0], max_retries=0) as made:
        yield made


def test_what_was_just_learnt_is_said(client, trained):
    asked = {"messages": HELLO, "temperature": 0, "max_tokens": 12}
    said = [client.chat.completions.create(model=path, **asked).choices[0].message.content for path in trained]
    base = client.chat.completions.create(model="tiny", **asked).choices[0].message.content
    assert said == [base, NEW]
    assert base != NEW


def test_the_other_client_streams_it(address, keys, trained):
    with (
        anthropic.Anthropic(base_url=address, api_key=keys[0], max_retries=0) as claude,
        claude.messages.stream(
            model=trained[1], messages=HELLO, max_tokens=12, extra_body={"temperature": 0}
        ) as stream,
    ):
        assert "".join(stream.text_stream) == NEW
        assert stream.get_final_message().model == trained[1]


def test_another_tenants_checkpoint_is_not_there(address, keys, trained):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=keys[1], max_retries=0) as other:
        with pytest.raises(openai.NotFoundError) as foreign:
            other.chat.completions.create(model=trained[1], messages=HELLO)
        with pytest.raises(openai.NotFoundError) as missing:
            other.chat.completions.create(model=trained[1].replace("after", "never"), messages=HELLO)
    assert str(foreign.value).replace("after", "never") == str(missing.value)


def test_a_checkpoint_that_is_not_there_is_told_in_each_dialect(address, keys, trained):
    gone = trained[1].replace("after", "never")
    asked = {"model": gone, "messages": HELLO, "max_tokens": 3}
    for path in ("/v1/chat/completions", "/v1/messages"):
        answer = httpx.post(f"{address}{path}", json=asked, headers={"authorization": f"Bearer {keys[0]}"})
        assert (answer.status_code, gone in answer.text) == (404, True)
