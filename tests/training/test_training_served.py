"""Tenants of a whole server: their limits, their models over the gateway, and a start with damaged files."""

import gc
import json
from contextlib import contextmanager

import httpx
import openai
import pytest
import tinker
from collecting import collecting, plain
from two_tenants import ALIAS, DATUM, make_keys, served

from doorstep.store import Store
from doorstep.types import Route

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def keys(tmp_path):
    yield make_keys(tmp_path / "data")
    gc.collect()  # the SDK leaves connections open, which complain here, where the tests expect it


@contextmanager
def training(url, key):
    """Give a model of the key's tenant, closed at the end."""
    client = tinker.ServiceClient(base_url=url, api_key=key)
    try:
        yield client.create_lora_training_client(ALIAS, rank=4).result()
    finally:
        client.close("success").result()


def test_one_model_too_many_is_refused_until_another_is_closed(tmp_path, keys):
    with served(tmp_path, max_models=1) as url:
        more = tinker.ServiceClient(base_url=url, api_key=keys["ann"])
        refused = pytest.raises(tinker.PermissionDeniedError, match="has 1 models here, and 1 are allowed")
        with training(url, keys["ann"]), training(url, keys["bob"]), refused:
            more.create_lora_training_client(ALIAS).result()
        assert more.create_lora_training_client(ALIAS, rank=4).result().get_info().lora_rank == 4
        more.close("success").result()


def test_tokens_beyond_the_day_are_refused(tmp_path, keys):
    with served(tmp_path, max_tokens_per_day=7) as url, training(url, keys["ann"]) as ann:
        for _ in range(2):
            ann.forward_backward([DATUM], "cross_entropy").result()
        with pytest.raises(tinker.RequestFailedError, match="3 tokens more are beyond your 7 a day; 6 are used"):
            ann.forward_backward([DATUM], "cross_entropy").result()
        with training(url, keys["bob"]) as bob:
            assert bob.forward_backward([DATUM], "cross_entropy").result().metrics["loss:sum"]


def test_checkpoints_beyond_the_bytes_are_refused(tmp_path, keys):
    with served(tmp_path, max_checkpoint_bytes=10) as url, training(url, keys["ann"]) as model:
        path = model.save_state("one").result().path
        with pytest.raises(tinker.RequestFailedError, match="and 10 are allowed"):
            model.save_state("two").result()
        tinker.RestClient(base_url=url, api_key=keys["ann"]).delete_checkpoint_from_tinker_path(path).result()
        assert model.save_state("two").result().path


def test_usage_is_kept_over_a_restart(tmp_path, keys):
    with served(tmp_path) as url, training(url, keys["ann"]) as model:
        model.forward_backward([DATUM], "cross_entropy").result()
    with served(tmp_path) as url:
        used = httpx.get(f"{url}/api/v1/usage", headers={"x-api-key": keys["ann"]}, trust_env=False).json()
    assert used["tokens_today"] == 3


def chat(url, key, model):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        messages = [{"role": "user", "content": "hi"}]
        return client.chat.completions.create(model=model, messages=messages, max_tokens=3)


def test_a_checkpoint_is_a_model_for_its_owners_key(tmp_path, keys):
    with served(tmp_path) as url, training(url, keys["ann"]) as model:
        path = model.save_weights_for_sampler("one").result().path
        assert chat(url, keys["ann"], path).model == path
        with pytest.raises(openai.NotFoundError, match="there is no checkpoint"):
            chat(url, keys["bob"], path)


def test_a_checkpoint_that_a_route_leads_to_is_a_model_for_all(tmp_path, keys):
    with served(tmp_path) as url, training(url, keys["ann"]) as model:
        path = model.save_weights_for_sampler("promoted").result().path
        with Store.open(tmp_path / "data" / "doorstep.db") as store:
            store.add(Route(route_id="r1", workflow="orders", variant="v", model=path, decision_id=None, at_us=1))
        assert chat(url, keys["bob"], "workflow/orders").model == path


def test_a_server_starts_with_damaged_files_and_serves_the_others(tmp_path, keys):
    with served(tmp_path) as url, training(url, keys["ann"]) as model:
        good, bad, run_id = (
            model.save_state("good").result().path,
            model.save_state("bad").result().path,
            model.model_id,
        )
    folder = tmp_path / "data" / "training" / "sessions" / run_id.partition(":")[0] / "0" / "weights"
    (folder / "bad.json").write_bytes(b"\x00" * 20)
    with served(tmp_path) as url:
        rest = tinker.RestClient(base_url=url, api_key=keys["ann"])
        listed = {one.tinker_path: one.user_metadata for one in rest.list_checkpoints(run_id).result().checkpoints}
        assert listed[good] is None
        assert "bad.json cannot be read" in listed[bad]["error"]
        with pytest.raises(tinker.UnprocessableEntityError, match="Restore it from a copy, or delete it"):
            rest.get_weights_info_by_tinker_path(bad).result()
        rest.delete_checkpoint_from_tinker_path(bad).result()
        assert [one.tinker_path for one in rest.list_checkpoints(run_id).result().checkpoints] == [good]


def test_a_damaged_run_is_listed_as_such(tmp_path, keys):
    with served(tmp_path) as url, training(url, keys["ann"]) as model:
        run_id = model.model_id
    record = tmp_path / "data" / "training" / "sessions" / run_id.partition(":")[0] / "0" / "run.json"
    record.write_text(json.dumps({"run_id": run_id}))
    with served(tmp_path) as url:
        (run,) = tinker.RestClient(base_url=url, api_key=keys["ann"]).list_training_runs().result().training_runs
        bobs = tinker.RestClient(base_url=url, api_key=keys["bob"]).list_training_runs().result().training_runs
    assert (run.training_run_id, run.corrupted, bobs) == (run_id, True, [])
    assert "run.json cannot be read" in run.user_metadata["error"]


def test_training_comes_to_a_collector(tmp_path, keys):
    with collecting() as collector:
        with served(tmp_path, otlp=collector.url) as url, training(url, keys["ann"]) as model:
            model.forward_backward([DATUM], "cross_entropy").result()
            model.optim_step(tinker.AdamParams(learning_rate=0.5)).result()
        spans = {span["name"]: span for span in collector.spans()}
        sent = [body for path, _, body in collector.requests if path == "/v1/metrics"][-1]
    assert spans["optim_step"]["traceId"] == spans["forward_backward"]["traceId"]
    assert spans["optim_step"]["said"]["learning_rate"] == 0.5
    figures = {one["name"]: one for one in sent["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]}
    tokens = {plain(one["attributes"])["kind"]: one["asDouble"] for one in points(figures, "tokens_total")}
    assert tokens["forward_backward"] == 3
    assert "doorstep_training_models" in figures


def points(figures, name):
    return figures[f"doorstep_training_{name}"]["sum"]["dataPoints"]
