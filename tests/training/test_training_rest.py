"""What is listed, kept and shared, through the SDK's own REST client, for two tenants of one server."""

import gc
import json
import re
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import httpx
import pytest
import tinker
from tinker.types import AccessibleSearchOwner, SessionSearchRequest
from two_tenants import ALIAS, DATUM, make_keys, served

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


class World(NamedTuple):
    """A server, its two tenants, and what ``ann`` trained."""

    url: str
    keys: dict[str, str]
    ann: Any
    bob: Any
    model: Any

    @property
    def run_id(self) -> str:
        return self.model.model_id

    def saved(self, name: str) -> str:
        return self.model.save_state(name).result().path

    def raw(self, tenant: str, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"x-api-key": self.keys[tenant]}
        return httpx.request(method, f"{self.url}/api/v1{path}", headers=headers, trust_env=False, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rest")
    keys = make_keys(folder / "data")
    with served(folder) as url:
        client = tinker.ServiceClient(base_url=url, api_key=keys["ann"])
        model = client.create_lora_training_client(ALIAS, rank=4, user_metadata={"purpose": "test"}).result()
        model.forward_backward([DATUM], "cross_entropy").result()
        model.optim_step(tinker.AdamParams(learning_rate=0.5)).result()
        ann, bob = (tinker.RestClient(base_url=url, api_key=key) for key in keys.values())
        yield World(url, keys, ann, bob, model)
        client.close("success").result()
        gc.collect()  # the SDK leaves connections open, which complain here


def test_the_names_of_the_base_are_told(world):
    models = world.ann.get_server_capabilities().result().supported_models
    assert [model.model_name for model in models] == ["tiny", ALIAS]
    assert all(model.trainable and model.sampleable and model.max_context_length == 64 for model in models)


def test_a_run_is_told_with_its_newest_checkpoints(world):
    path = world.saved("newest")
    run = world.ann.get_training_run(world.run_id).result()
    assert (run.training_run_id, run.base_model, run.lora_rank, run.is_lora) == (world.run_id, ALIAS, 4, True)
    assert run.last_checkpoint.tinker_path == path
    assert run.user_metadata == {"purpose": "test"}
    assert world.ann.get_training_run_by_tinker_path(path).result() == run


def test_runs_are_listed_by_pages_and_by_project(world):
    page = world.ann.list_training_runs(limit=1).result()
    assert [run.training_run_id for run in page.training_runs] == [world.run_id]
    assert world.ann.list_training_runs(offset=page.cursor.total_count).result().training_runs == []
    assert world.ann.list_training_runs(project_id="elsewhere").result().training_runs == []


def test_checkpoints_are_listed_by_run_and_by_tenant(world):
    path = world.saved("listed")
    of_run = {one.tinker_path: one for one in world.ann.list_checkpoints(world.run_id).result().checkpoints}
    assert (of_run[path].checkpoint_id, of_run[path].checkpoint_type) == ("weights/listed", "training")
    of_all = world.ann.list_user_checkpoints(limit=1).result()
    assert [one.tinker_path for one in of_all.checkpoints] == [path]
    assert of_all.cursor.total_count >= len(of_run)


def test_weights_are_described(world):
    info = world.ann.get_weights_info_by_tinker_path(world.saved("described")).result()
    assert (info.base_model, info.is_lora, info.lora_rank) == (ALIAS, True, 4)
    assert (info.train_attn, info.train_mlp, info.train_unembed) == (True, True, True)


def test_sessions_are_listed_told_and_searched(world):
    session_id = world.run_id.partition(":")[0]
    assert session_id in world.ann.list_sessions().result().sessions
    assert world.ann.get_session(session_id).result().training_run_ids == [world.run_id]
    found = search(world.ann, session_id=session_id).sessions
    assert [(one.session_id, one.status.type) for one in found] == [(session_id, "active")]
    assert search(world.ann, statuses=[{"type": "client_finished"}], session_id=session_id).sessions == []
    assert search(world.ann, user_metadata={"no": "such"}).sessions == []


def test_a_search_goes_on_from_page_to_page(world):
    with httpx.Client(base_url=world.url, headers={"x-api-key": world.keys["bob"]}, trust_env=False) as http:
        for name in ("night one", "night two", "day"):
            body = {"sdk_version": "0.38.0", "tags": [], "user_metadata": None, "display_name": name}
            assert http.post("/api/v1/create_session", json=body).status_code == 200
    first = search(world.bob, display_name="NIGHT", limit=1)
    second = search(world.bob, display_name="NIGHT", limit=1, cursor=first.next_cursor)
    assert [page.sessions[0].display_name for page in (first, second)] == ["night two", "night one"]
    assert second.next_cursor is None


def search(client, **fields):
    with pytest.warns(tinker.ExperimentalWarning):
        return client.search_sessions(SessionSearchRequest(owner=AccessibleSearchOwner(), **fields)).result()


def test_a_session_moves_to_a_project(world):
    session_id = world.run_id.partition(":")[0]
    world.ann.assign_session_project(session_id, "winter").result()
    assert [one.session_id for one in search(world.ann, project_ids=["winter"]).sessions] == [session_id]
    assert len(world.ann.list_training_runs(project_id="winter").result().training_runs) == 1


def test_a_checkpoint_is_deleted(world):
    path = world.saved("deleted")
    world.ann.delete_checkpoint_from_tinker_path(path).result()
    assert path not in [one.tinker_path for one in world.ann.list_checkpoints(world.run_id).result().checkpoints]
    with pytest.raises(tinker.NotFoundError):
        world.ann.delete_checkpoint_from_tinker_path(path).result()


def test_a_time_to_live_is_set_and_taken_away(world):
    path = world.saved("mortal")
    world.ann.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    left = one_of(world, path).expires_at - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(minutes=60)
    world.ann.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert one_of(world, path).expires_at is None


def one_of(world, path):
    return {one.tinker_path: one for one in world.ann.list_checkpoints(world.run_id).result().checkpoints}[path]


def test_what_is_anothers_is_not_there(world):
    path = world.saved("private")
    asked = [
        lambda rest: rest.get_training_run(world.run_id),
        lambda rest: rest.get_training_run(world.run_id, access_scope="accessible"),
        lambda rest: rest.list_checkpoints(world.run_id),
        lambda rest: rest.get_weights_info_by_tinker_path(path),
        lambda rest: rest.delete_checkpoint_from_tinker_path(path),
        lambda rest: rest.publish_checkpoint_from_tinker_path(path),
        lambda rest: rest.set_checkpoint_ttl_from_tinker_path(path, 3600),
        lambda rest: rest.copy_weights(path, "mine"),
        lambda rest: rest.get_session(world.run_id.partition(":")[0]),
        lambda rest: rest.export_session_trace(world.run_id.partition(":")[0]),
    ]
    for ask in asked:
        with pytest.raises(tinker.NotFoundError, match="there is no"):
            ask(world.bob).result()
    assert world.bob.list_training_runs().result().training_runs == []
    assert world.bob.list_user_checkpoints().result().checkpoints == []


def test_another_cannot_train_or_sample_what_is_private(world):
    path = world.saved("unshared")
    with pytest.raises(tinker.NotFoundError, match="there is no checkpoint"):
        service(world, "bob").create_training_client_from_state(path).result()
    with pytest.raises(tinker.NotFoundError, match="there is no checkpoint"):
        service(world, "bob").create_sampling_client(path).result()


def service(world, tenant):
    return tinker.ServiceClient(base_url=world.url, api_key=world.keys[tenant])


def test_a_published_checkpoint_is_for_all_to_read(world):
    path, hidden = world.saved("published"), world.saved("hidden")
    world.ann.publish_checkpoint_from_tinker_path(path).result()
    assert world.bob.get_weights_info_by_tinker_path(path).result().lora_rank == 4
    seen = world.bob.list_checkpoints(world.run_id).result().checkpoints
    assert [(one.tinker_path, one.public) for one in seen] == [(path, True)]
    run = world.bob.get_training_run(world.run_id, access_scope="accessible").result()
    assert run.last_checkpoint.tinker_path == path != hidden
    assert run.user_metadata is None  # what else its owner said of the run is not published
    with pytest.raises(tinker.NotFoundError):
        world.bob.delete_checkpoint_from_tinker_path(path).result()
    world.ann.unpublish_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError):
        world.bob.get_weights_info_by_tinker_path(path).result()


def test_a_copy_is_a_checkpoint_of_its_own(world):
    path = world.saved("original")
    world.ann.publish_checkpoint_from_tinker_path(path).result()
    copied = world.bob.copy_weights(path, "archive", ttl_seconds=3600).result()
    world.ann.delete_checkpoint_from_tinker_path(path).result()
    run_id = copied.removeprefix("tinker://").partition("/")[0]
    (one,) = world.bob.list_checkpoints(run_id).result().checkpoints
    assert (one.tinker_path, one.checkpoint_type, one.public) == (copied, "training", False)
    assert one.expires_at is not None
    assert [run.training_run_id for run in world.bob.list_training_runs(project_id="archive").result().training_runs]
    client = service(world, "bob")
    assert client.create_training_client_from_state(copied).result().get_info().lora_rank == 4
    client.close("success").result()


def test_external_weights_are_fetched_without_a_key(world):
    path = world.model.save_weights_external("taken").result().path
    answer = world.ann.get_external_weights_urls(path).result()
    assert timedelta(minutes=50) < answer.expires - datetime.now(UTC) <= timedelta(minutes=60)
    with urllib.request.urlopen(answer.urls["adapter.json"]) as response:
        assert json.load(response)["spec"]["rank"] == 4
    with pytest.raises(tinker.NotFoundError):
        world.bob.get_external_weights_urls(path).result()


@pytest.mark.parametrize(
    "change", [("adapter.json", "other.json"), ("signature=", "signature=0"), ("expires=", "expires=9")]
)
def test_an_address_that_was_changed_opens_nothing(world, change):
    path = world.model.save_weights_external(f"sealed-{change[0].strip('=.')}").result().path
    (url,) = world.ann.get_external_weights_urls(path).result().urls.values()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url.replace(*change))


def test_only_external_weights_have_addresses(world):
    path = world.saved("inside").replace("tinker://", "/training_runs/").replace("/weights/", "/checkpoints/weights/")
    answer = world.raw("ann", "GET", f"{path}/external_weights_urls")
    assert (answer.status_code, "not of kind external_weights" in answer.text) == (422, True)


def test_a_session_is_exported_as_a_trace(world):
    url = world.ann.export_session_trace(world.run_id.partition(":")[0]).result()
    with urllib.request.urlopen(url) as response:
        events = json.load(response)["traceEvents"]
    assert {"forward_backward", "optim_step"} <= {event["name"] for event in events}


def test_steps_are_seen(world):
    (step,) = world.raw("ann", "GET", f"/training_runs/{world.run_id}/steps").json()["steps"]
    assert (step["step"], step["rows"], step["tokens"], step["learning_rate"]) == (1, 1, 3, 0.5)
    assert step["loss"] is not None
    assert world.raw("ann", "GET", f"/training_runs/{world.run_id}/steps?after=1").json()["steps"] == []
    assert world.raw("bob", "GET", f"/training_runs/{world.run_id}/steps").status_code == 404


def test_usage_is_ones_own(world):
    used = world.raw("ann", "GET", "/usage").json()
    assert used["limits"]["max_models"] is None
    assert sum(one["tokens"] for one in used["used"] if one["kind"] == "trained") >= 3
    assert {one["tenant"] for one in used["used"]} == {used["tenant"]}


def test_metrics_count_training(world):
    text = httpx.get(f"{world.url}/metrics", headers={"x-api-key": world.keys["ann"]}, trust_env=False).text
    assert 'doorstep_training_operations_total{kind="optim_step"} 1' in text
    assert re.search("^doorstep_training_models [1-9]", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/training_runs?limit=many", 422, "limit=many: give a whole number"),
        ("/sessions?offset=-1", 422, "offset=-1: give a whole number"),
        ("/billing/usage/events", 404, "no billing"),
        ("/audit", 404, "no audit log"),
        ("/training_runs/nobody:train:0", 404, "there is no training run"),
        ("/training_runs/nobody:train:0/checkpoints", 404, "there is no training run"),
    ],
)
def test_what_cannot_be_is_said(world, path, status, words):
    answer = world.raw("ann", "GET", path)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True)


def test_a_search_for_no_sessions_is_refused(world):
    answer = world.raw("ann", "POST", "/sessions/search", json={"limit": 0})
    assert (answer.status_code, "`$.limit`" in answer.json()["detail"]) == (422, True)
