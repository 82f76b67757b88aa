"""Faults on the wire: order, retries, loss, and requests that cannot work. In process, by the addresses."""

import asyncio

import httpx
import pytest
from scripted_engine import ScriptedEngine
from training_door import KEY, application

from doorstep import ids
from doorstep.config import TrainingSettings
from doorstep.errors import EngineUnavailable, NotFound
from doorstep.training.codec import schema
from doorstep.training.service import Service


def batch(model, seq, token=1, loss="cross_entropy", **config):
    message = schema().ForwardBackwardRequest(model_id=model, seq_id=seq, loss_fn=loss)
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = token.to_bytes(4, "little")
    tensor = datum.loss_fn_inputs["target_tokens"]
    tensor.dense, tensor.dtype = (2).to_bytes(8, "little"), schema().DTYPE_INT64
    for name, value in config.items():
        message.loss_fn_config_v2[name].number = value
    return message


async def step(door, model, seq, **params):
    made = await door.post("/optim_step", model_id=model, seq_id=seq, adam_params=params)
    return made["request_id"]


async def sampler(door, session=None, path=None):
    session = session or await door.session()
    source = {"model_path": path} if path else {"base_model": "tiny"}
    made = await door.post("/create_sampling_session", session_id=session, sampling_session_seq_id=0, **source)
    return made["sampling_session_id"]


def sample(sampler_id, seq=0, **fields):
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]}
    params = {"max_tokens": 3} | fields.pop("params", {})
    return {"sampling_session_id": sampler_id, "seq_id": seq, "prompt": prompt, "sampling_params": params} | fields


async def test_operations_run_in_the_order_of_their_numbers(door):
    model = await door.model()
    late = [await step(door, model, 3), await door.send(batch(model, 2, token=20).SerializeToString())]
    assert len(door.engine.calls) == 1  # the model's creation: nothing runs before number 1
    first = await door.send(batch(model, 1, token=10).SerializeToString())
    for request_id in [first, *late]:
        assert (await door.fetch(request_id)).status_code == 200
    assert [call.split()[-1] for call, _ in door.engine.calls] == ["create", "[10]", "[20]", "optim_step"]


async def test_a_retry_is_the_same_operation(door):
    model = await door.model()
    once = await step(door, model, 1)
    assert await step(door, model, 1) == once
    await door.fetch(once)
    assert await step(door, model, 1) == once
    assert (await door.fetch(once)).json()["metrics"]["step"] == 1


async def test_making_a_model_again_is_a_retry(door):
    session = await door.session()
    assert await door.model(session) == await door.model(session)
    assert [call for call, _ in door.engine.calls] == ["create"]


async def test_an_answer_can_be_fetched_twice(door):
    request_id = await step(door, await door.model(), 1)
    assert (await door.fetch(request_id)).content == (await door.fetch(request_id)).content


async def test_a_lost_promise_is_gone(door):
    assert (await door.fetch("nobody:train:0:1")).status_code == 410


async def test_a_poll_ends_before_the_client_gives_up(door, monkeypatch):
    monkeypatch.setattr("doorstep.training.app.POLL_S", 0.01)
    request_id = await step(door, await door.model(), 2)  # waits for number 1
    answer = await door.fetch(request_id)
    assert (answer.status_code, answer.json()["type"]) == (408, "try_again")


async def test_a_poll_answers_when_the_result_is_there(door):
    door.engine.gate.clear()
    model = await door.model()
    request_id = await door.send(batch(model, 1).SerializeToString())
    poll = asyncio.create_task(door.fetch(request_id))
    await asyncio.sleep(0.01)
    assert not poll.done()
    door.engine.gate.set()
    assert (await poll).headers["content-type"] == "application/x-protobuf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "grpo"}, "loss 'grpo' is not served here"),
        ({"loss": "custom"}, "loss custom takes one setting, loss_id"),
        ({"loss": "ppo"}, "datum 0: ppo needs advantages, logprobs"),
        ({"beta": 0.1}, "cross_entropy has no setting beta; it takes no settings"),
        ({"token": 5000}, "a token id is not in the vocabulary"),
    ],
)
async def test_a_bad_batch_fails_alone_and_says_why(door, change, message):
    model = await door.model()
    failed = (await door.fetch(await door.send(batch(model, 1, **change).SerializeToString()))).json()
    assert message in failed["error"]
    assert failed["category"] == "user"
    assert (await door.fetch(await step(door, model, 2))).json()["metrics"]["step"] == 1


async def test_shapes_that_are_not_served_are_named(door):
    model = await door.model()
    wrong = batch(model, 1)
    wrong.data[0].loss_fn_inputs["target_tokens"].shape.extend([2, 1])
    assert "datum 0, target_tokens" in (await door.fetch(await door.send(wrong.SerializeToString()))).text
    wrong = batch(model, 2)
    wrong.data[0].loss_fn_inputs["mask"].dense = b"\0\0\0\0"
    assert "cross_entropy does not take mask" in (await door.fetch(await door.send(wrong.SerializeToString()))).text
    wrong = batch(model, 3)
    wrong.data[0].model_input.add().image.data = b"png"
    assert "not image chunks" in (await door.fetch(await door.send(wrong.SerializeToString()))).text


async def test_bytes_that_are_no_batch(door):
    answer = await door.http.post("/forward_backward", content=b"\xff\xff")
    assert answer.status_code == 422
    packed = await door.http.post("/forward_backward", content=b"", headers={"Content-Encoding": "br"})
    assert "'br' is not read here; send zstd" in packed.json()["detail"]


async def test_unknown_fields_are_named(door):
    session = await door.session()
    lora = {"rank": 4, "dropout": 0.5}
    answer = await door.post(
        "/create_model", 422, session_id=session, model_seq_id=0, base_model="tiny", lora_config=lora
    )
    assert "`dropout`" in answer["detail"]
    assert "`lr`" in (await door.fetch(await step(door, await door.model(session), 1, lr=1.0))).json()["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model": "qwen"}, "base model 'qwen' is not served here. There is: tiny"),
        ({"optimizer_config": {"type": "dimuon", "version": 1}}, "there is: {'type': 'adamw'}"),
        ({"lora_config": {"rank": -1}}, "rank must be at least 1, or 0 to train the matrices themselves"),
        ({"session_id": "nobody"}, "there is no session nobody"),
    ],
)
async def test_a_model_that_cannot_be_made(door, change, message):
    fields = {"session_id": await door.session(), "model_seq_id": 0, "base_model": "tiny"} | change
    answer = await door.http.post("/create_model", json=fields)
    assert answer.status_code in (404, 422)
    assert message in answer.json()["detail"]


async def test_a_model_the_engine_refuses_fails_its_promise(door):
    session = await door.session()
    fields = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 1000}}
    made = await door.post("/create_model", **fields)
    assert (await door.fetch(made["request_id"])).json() == {"error": "rank is at most 512", "category": "user"}
    assert door.service.live_models() == 0


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "x" * 200, "a\0b", "ä"])
async def test_names_that_could_leave_the_folder_are_refused(door, name, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    model = await door.model()
    made = await door.post("/save_weights", model_id=model, seq_id=1, path=name)
    assert "cannot name a checkpoint" in (await door.fetch(made["request_id"])).json()["error"]
    assert not [file for file in tmp_path.rglob("adapter.json") if file not in before]


@pytest.mark.parametrize("path", ["x", "tinker://a/b", "tinker://../weights/x", "tinker://s:train:0/other/x"])
async def test_paths_that_are_none(door, path):
    session = await door.session()
    where = {"session_id": session, "sampling_session_seq_id": 0}
    answer = await door.post("/create_sampling_session", 422, model_path=path, **where)
    assert "It has the form" in answer["detail"] or "There are: weights, sampler_weights" in answer["detail"]


async def test_saving_does_not_overwrite_unless_told(door):
    model = await door.model()
    answers = []
    for seq, more in enumerate([{}, {}, {"overwrite": True}], start=1):
        made = await door.post("/save_weights", model_id=model, seq_id=seq, path="one", **more)
        answers.append((await door.fetch(made["request_id"])).json())
    assert [answer.get("path") for answer in answers] == [f"tinker://{model}/weights/one", None, answers[0]["path"]]
    assert "exists. Delete it first" in answers[1]["error"]


async def test_a_full_disk_fails_the_save_and_nothing_else(door, monkeypatch):
    model = await door.model()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    made = await door.post("/save_weights", model_id=model, seq_id=1, path="one")
    failed = (await door.fetch(made["request_id"])).json()
    assert ("No space left" in failed["error"], failed["category"]) == (True, "server")
    assert (await door.fetch(await step(door, model, 2))).json()["metrics"]["step"] == 1


async def test_load_into_a_live_model(door):
    model = await door.model()
    made = await door.post("/save_weights", model_id=model, seq_id=1, path="zero")
    path = (await door.fetch(made["request_id"])).json()["path"]
    await step(door, model, 2)
    await door.post("/load_weights", model_id=model, seq_id=3, path=path, optimizer=True)
    assert (await door.fetch(await step(door, model, 4))).json()["metrics"]["step"] == 1


async def test_sampler_weights_have_no_optimizer_to_load(door):
    session = await door.session()
    model = await door.model(session)
    made = await door.post("/save_weights_for_sampler", model_id=model, seq_id=1, path="final")
    path = (await door.fetch(made["request_id"])).json()["path"]
    fields = {"session_id": session, "model_seq_id": 1, "path": path}
    assert "no optimizer state" in (await door.post("/load_weights", 422, optimizer=True, **fields))["detail"]
    assert (await door.post("/load_weights", optimizer=False, **fields))["request_id"]


async def test_a_checkpoint_expires(door, monkeypatch):
    model = await door.model()
    made = await door.post("/save_weights", model_id=model, seq_id=1, path="short", ttl_seconds=1)
    path = (await door.fetch(made["request_id"])).json()["path"]
    assert (await door.http.get(f"/training_runs/{model}/checkpoints")).json()["checkpoints"][0]["expires_at"]
    monkeypatch.setattr("doorstep.ids.now_us", lambda now=ids.now_us: now() + 1_000_000)
    assert "there is no checkpoint" in (await door.post("/weights_info", 404, tinker_path=path))["detail"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs must be from 0"),
        ({"target_prompt_logprobs": {"data": [1], "dtype": "int64"}}, "target_prompt_logprobs must be int64 [1, K]"),
        ({"target_prompt_logprobs": {"data": [1000], "shape": [1, 1]}}, "has the id 1000, outside the vocabulary"),
        ({"target_prompt_logprobs": {"data": [1, 2], "shape": [1, 1]}}, "2 values for the shape [1, 1]"),
        ({"prompt_logprobs_last_n": 1}, "set prompt_logprobs"),
        ({"num_samples": 0}, "at least 1"),
        ({"prompt": {"chunks": []}}, "the prompt is empty"),
        ({"prompt": {"chunks": [{"type": "image", "data": ""}]}}, "not image chunks"),
        ({"prompt": {"chunks": [{"type": "encoded_text", "tokens": [1] * 64}]}}, "64 tokens; tiny holds 64"),
        ({"params": {"min_p": 0.1}}, "`min_p`"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 2}, "from 1 to 1"),
        ({"params": {"stop": "x"}}, "give stop as token ids"),  # this model's folder has no tokenizer
    ],
)
async def test_sampling_that_cannot_work(door, change, message):
    assert message in (await door.post("/asample", 422, **sample(await sampler(door), **change)))["detail"]


async def test_only_the_last_prompt_tokens_are_scored(door):
    import math
    from array import array

    prompt = {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7]}]}
    wanted = sample(await sampler(door), prompt_logprobs=True, prompt_logprobs_last_n=1, prompt=prompt)
    made = await door.post("/asample", **wanted)
    answer = schema().SampleResponse.FromString((await door.fetch(made["request_id"])).content)
    first, second, third = array("f", answer.prompt_logprobs)
    assert math.isnan(first)
    assert math.isnan(second)
    assert third == -1


async def test_cancelling_ends_the_work(door):
    door.engine.gate.clear()
    made = await door.post("/asample", **sample(await sampler(door)))
    await asyncio.sleep(0.01)
    answer = await door.http.post("/cancel_future", json={"request_id": made["request_id"]})
    assert answer.status_code == 204
    await asyncio.sleep(0.01)
    assert door.engine.sampling_closed == 1
    assert (await door.fetch(made["request_id"])).status_code == 410


async def test_a_finished_session_takes_its_models_along(door):
    session = await door.session()
    model = await door.model(session)
    stuck = await step(door, model, 2)
    poll = asyncio.create_task(door.fetch(stuck))
    await asyncio.sleep(0)
    answer = await door.http.post(f"/sessions/{session}/finish", json={"reason": {"type": "success"}, "detail": None})
    assert answer.status_code == 204
    assert "ended before this operation's turn" in (await poll).text
    assert not door.engine.adapters
    await door.post("/session_heartbeat", 410, session_id=session)
    assert "is not live here" in (await door.post("/optim_step", 404, model_id=model, seq_id=1))["detail"]


async def test_models_of_silent_sessions_make_room(door, monkeypatch):
    await door.model()
    monkeypatch.setattr("doorstep.training.service.IDLE_SESSION_S", -1.0)
    await door.service.release_idle()
    assert not door.engine.adapters


async def test_an_engine_that_is_away_is_said_and_survived(door, monkeypatch):
    async def away(*_, **__):
        raise EngineUnavailable("the engine went away; it is being started again")

    model = await door.model()
    monkeypatch.setattr(door.engine, "optim_step", away)
    failed = (await door.fetch(await step(door, model, 1))).json()
    assert failed == {"error": "the engine went away; it is being started again", "category": "server"}


async def test_what_is_not_served_is_a_clear_404(door):
    answer = await door.http.post("/create_reward", json={})
    assert (answer.status_code, "create_reward is not part" in answer.json()["detail"]) == (404, True)


async def test_a_key_is_asked_for(door):
    answer = await door.http.get("/training_runs", headers={"X-API-Key": "sk-other"})
    assert (answer.status_code, "tml-" in answer.json()["detail"]) == (401, True)


async def test_pages_of_training_runs(door):
    session = await door.session()
    models = [await door.model(session, number) for number in range(3)]
    page = (await door.http.get("/training_runs", params={"limit": 2, "offset": 1})).json()
    assert [run["training_run_id"] for run in page["training_runs"]] == models[1::-1]
    assert page["cursor"]["total_count"] == 3
    assert (await door.http.get("/training_runs", params={"limit": "-1"})).status_code == 422


async def test_the_engine_holds_the_samplers_used_last(tmp_path):
    engine = ScriptedEngine(str(tmp_path))
    service = await Service.start(engine, tmp_path, settings=TrainingSettings(sampler_bytes=2))
    transport = httpx.ASGITransport(application(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://d/api/v1", headers={"X-API-Key": KEY}) as http:
        session = (await http.post("/create_session", json={"sdk_version": "0.38.0"})).json()["session_id"]
        fields = {"session_id": session, "model_seq_id": 0, "base_model": "tiny"}
        await http.post("/create_model", json=fields)
        model, paths = f"{session}:train:0", []
        for seq in (1, 2, 3):
            body = {"model_id": model, "seq_id": seq, "path": f"s{seq}"}
            made = (await http.post("/save_weights_for_sampler", json=body)).json()
            paths.append((await http.post("/retrieve_future", json=made)).json()["path"])
    first = await service.adapter_for(paths[0], None)
    others = [await service.adapter_for(paths[1], None), await service.adapter_for(paths[2], None)]
    await service.samplers.close()
    assert set(engine.adapters) == {model, *others}
    assert await service.adapter_for(paths[0], None) == first
    with pytest.raises(NotFound, match="there is no checkpoint"):
        await service.adapter_for(paths[0] + "x", None)
    await service.close()


async def test_too_large_a_body_is_refused_whole(door, monkeypatch):
    monkeypatch.setattr("doorstep.training.app.MAX_BODY", 1000)

    async def chunks():
        for _ in range(11):
            yield bytes(100)

    answer = await door.http.post("/forward_backward", content=chunks())
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert "1100 bytes, and 1000 are taken; send fewer datums" in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"sdk_version": 1}',
        b'{"sdk_version": "1", "user_metadata": {"a": ' + b"[" * 100_000,
    ],
)
async def test_json_that_is_none_of_ours(door, body):
    answer = await door.http.post("/create_session", content=body)
    assert (answer.status_code, answer.json()["detail"][:14]) == (422, "CreateSession:")


async def test_who_asks_for_too_much_at_once_is_told_to_come_back(door, monkeypatch):
    monkeypatch.setattr("doorstep.training.promises.MAX_OPEN", 1)
    door.engine.gate.clear()
    wanted = await sampler(door)
    first = await door.post("/asample", **sample(wanted, 0))
    answer = await door.http.post("/asample", json=sample(wanted, 1))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    door.engine.gate.set()
    await door.fetch(first["request_id"])
    assert await door.post("/asample", **sample(wanted, 1))


async def test_training_that_waits_for_room_says_so(door, monkeypatch):
    door.service._tools.capacity._limit = 10
    door.engine.gate.clear()
    session = await door.session()
    first, second = [await door.model(session, number) for number in range(2)]
    inside = await door.send(batch(first, 1).SerializeToString())
    waits = await door.send(batch(second, 1).SerializeToString())
    monkeypatch.setattr("doorstep.training.app.POLL_S", 0.02)
    states = [(await door.fetch(request_id)).json() for request_id in (inside, waits)]
    assert [state["queue_state"] for state in states] == ["active", "paused_capacity"]
    assert "0 other calls wait before it" in states[1]["queue_state_reason"]
    monkeypatch.undo()
    door.engine.gate.set()
    assert (await door.fetch(waits)).status_code == 200


async def test_forward_by_its_old_address_leaves_no_gradient(door):
    model = await door.model()
    message = batch(model, 1)
    weights = message.data[0].loss_fn_inputs["weights"]
    weights.dense, weights.dtype = bytes.fromhex("0000803f"), schema().DTYPE_FLOAT32  # 1.0
    answer = await door.http.post("/forward", content=message.SerializeToString())
    await door.fetch(answer.json()["request_id"])
    assert door.engine.adapters[model].gradient == 0
    message.seq_id = 2
    await door.fetch(await door.send(message.SerializeToString()))
    assert door.engine.adapters[model].gradient == 1


async def test_a_session_tells_once_that_a_surrogate_is_trained(door):
    made = await door.post("/create_session", sdk_version="0.38.0", tags=[], project_id="p", display_name="mine")
    assert "its formula is not published" in made["info_message"]
    assert door.service.registry.session(made["session_id"], "local").display_name == "mine"


async def test_a_custom_loss_that_is_not_allowed(door):
    session = await door.session()
    given = {"op": "placeholder", "name": "logprobs", "target": "logprobs"}
    node = {"op": "call_function", "name": "x", "target": "os.system", "args": ["true"]}
    end = {"op": "output", "name": "output", "target": "output", "args": [{"tuple": [{"ref": "x"}, {"dict": {}}]}]}
    inputs, graph = [{"name": "logprobs", "rank": 1}], {"format": 1, "nodes": [given, node, end]}
    fields = {"name": "bad", "inputs": inputs, "graph": graph}
    made = await door.post("/create_custom_loss", session_id=session, custom_loss_seq_id=0, **fields)
    failed = (await door.fetch(made["request_id"])).json()
    assert ("os.system" in failed["error"], failed["category"]) == (True, "user")
    model = await door.model(session)
    wrong = batch(model, 1, loss="custom")
    wrong.loss_fn_config_v2["loss_id"].text = f"{session}:loss:../../0"
    failed = (await door.fetch(await door.send(wrong.SerializeToString()))).json()
    assert "there is no custom loss" in failed["error"]
