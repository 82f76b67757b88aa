"""What leaves the record has what was said in it, and no secret or personal data, wherever they stood."""

import base64
import json

import msgspec
import pytest
from captures import capture

from doorstep import ids
from doorstep.gateway.exporting import Outlet
from doorstep.gateway.records import rows_of
from doorstep.store import Store, pages
from doorstep.types import Feedback, Grade, GradeSource, Mode, Run, RunStatus, ToolCall
from doorstep.value.prices import UNKNOWN

MAIL = "jane.doe@example.com"


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "doorstep.db") as store:
        yield store


def keep(store, number=0, **changes):
    rows = rows_of(capture(number, **changes), lambda *_: UNKNOWN)
    store.add(rows.call, *rows.nodes, blobs=rows.blobs)
    return rows.call


def asked(content, **fields):
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": content}]} | fields).encode()


def run(run_id="run_1", **changes):
    values = {
        "run_id": run_id,
        "workflow": "orders",
        "variant": "base",
        "mode": Mode.PROD,
        "task_id": "mail 1",
        "task_digest": "d",
        "status": RunStatus.OK,
        "started_us": 1_000,
        "ended_us": 2_000,
    }
    return Run(**(values | changes))


def test_a_call_has_what_was_asked_and_answered(store):
    keep(store, request=asked("order 4711-2026-0815", temperature=0.5))
    (call,) = Outlet(store).calls()
    assert call["request"]["messages"] == [{"role": "user", "content": "order 4711-2026-0815"}]
    assert (call["request"]["temperature"], call["answer"]["texts"]) == (0.5, ["ho"])
    assert (call["call_id"], call["at"], call["model"]) == ("call_0000", "1970-01-01T00:00:00.001000+00:00", "tiny")


def test_a_run_that_lost_a_call_says_so(store):
    store.add(run(gaps=["no_token_ids"]))
    keep(store, run_id="run_1", request=b"", response=b"", gaps=["dropped_call"])
    (given,) = Outlet(store).runs()
    assert {"dropped_call", "no_token_ids"} <= set(given["gaps"])


def test_nothing_personal_leaves_from_any_field(store):
    answer = {"choices": [{"index": 0, "message": {"content": f"To {MAIL}"}, "finish_reason": "stop"}]}
    keep(store, request=asked(f"from {MAIL}"), response=json.dumps(answer).encode(), customer=MAIL)
    store.add(run(task_id=MAIL, output={"to": MAIL}, error=f"no {MAIL}", customer=MAIL))
    store.add(
        Feedback(
            feedback_id="f", at_us=1, run_id="run_1", call_id=None, kind="comment", name="comment",
            value=f"ask {MAIL}", source=GradeSource.HUMAN,
        ),
        Grade(
            grade_id="g", run_id="run_1", name="right", value=1.0, source=GradeSource.JUDGE, grader_version="1",
            at_us=1, why=f"{MAIL} is right",
        ),
        ToolCall(
            tool_call_id="t", run_id="run_1", call_id=None, name="mail", arguments={"to": MAIL}, effect="write",
            replay_key="k", result=f"sent to {MAIL}", started_us=1, ended_us=2,
        ),
    )  # fmt: skip
    outlet = Outlet(store)
    left = msgspec.json.encode([*outlet.calls(), *outlet.runs()]).decode()
    assert MAIL not in left
    assert outlet.found == {"email": 13}
    assert msgspec.json.encode([*Outlet(store, redacts=False).runs()]).decode().count(MAIL) == 10


def test_a_secret_in_two_pieces_of_a_stream_does_not_leave(store):
    def piece(text):
        return f'data: {{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}\n\n'

    stream = "".join(map(piece, ("jane.doe@exa", "mple.com"))) + 'data: {"choices":[{"index":0,"delta":{},'
    stream += '"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    keep(store, response=stream.encode(), stream=True)
    (call,) = Outlet(store).calls()
    assert call["answer"]["texts"] == ["[email]"]
    assert "exa" not in msgspec.json.encode(call).decode()


def test_a_secret_in_the_arguments_of_a_tool_does_not_leave(store):
    function = {"name": "login", "arguments": json.dumps({"password": "Tr0ub4dor&3"})}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }
    keep(store, request=json.dumps({"model": "tiny", "messages": [message]}).encode())
    outlet = Outlet(store)
    assert "Tr0ub4dor" not in msgspec.json.encode([*outlet.calls(), *outlet.runs()]).decode()
    assert outlet.found["password"] == 1


def test_pictures_and_sound_are_left_out_and_counted(store):
    picture = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 8).decode()
    keep(store, request=asked([{"type": "image_url", "image_url": {"url": picture}}]), run_id=None)
    keep(
        store,
        1,
        dialect="openai.speech",
        request=b'{"model":"tts","input":"hi","voice":"x"}',
        response=b"\xff\xfb",
        run_id=None,
    )
    keep(store, 2, request=b"\xff\xfe", run_id=None)
    outlet = Outlet(store)
    first, _, third = outlet.calls()
    assert first["request"]["messages"][0]["content"][0]["image_url"]["url"] == f"[media: {len(picture)} bytes]"
    assert (third["request"], outlet.found) == ("[media: 2 bytes]", {"media": 2})


def test_a_workflow_has_the_calls_of_its_runs_and_those_that_asked_for_it(store):
    store.add(run(), run("run_2", workflow="other"))
    keep(store, 0)
    keep(store, 1, run_id="run_2")
    keep(store, 2, run_id=None, requested_model="workflow/orders")
    assert [call["call_id"] for call in Outlet(store).calls("orders")] == ["call_0000", "call_0002"]
    assert [given["run_id"] for given in Outlet(store).runs("orders")] == ["run_1"]
    assert [call["workflow"] for call in Outlet(store).calls()] == ["orders", "other", None]


def test_what_began_before_is_left_out_and_pages_follow_each_other(store, monkeypatch):
    monkeypatch.setattr(pages, "PAGE", 2)
    for number in range(7):
        keep(store, number, started_us=number, run_id=None)
    assert [call["call_id"] for call in Outlet(store).calls(since=2)] == [f"call_{number:04}" for number in range(2, 7)]


def test_a_call_whose_content_was_deleted_is_given_without(store):
    keep(store, customer="acme")
    store.delete_customer("acme")
    (call,) = Outlet(store).calls()
    assert (call["request"], call["answer"], call["customer"]) == (None, {"texts": [], "messages": []}, None)


def test_a_run_has_the_grades_that_count(store):
    store.add(run())
    for number, value in enumerate((0.0, 1.0)):
        store.add(
            Grade(
                grade_id=ids.new_id("grade"), run_id="run_1", name="right", value=value, source=GradeSource.HUMAN,
                grader_version="1", at_us=number,
            )
        )  # fmt: skip
    (given,) = Outlet(store).runs()
    assert [(grade["name"], grade["value"]) for grade in given["grades"]] == [("right", 1.0)]
