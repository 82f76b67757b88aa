"""``doorstep conformance`` as a command: its JSON, its exit codes, and what it says of a wrong address."""

import json
import subprocess
import sys

import pytest
from scripted_engine import ScriptedEngine
from training_door import serving


@pytest.fixture
def url(tmp_path):
    with serving(tmp_path, lambda: ScriptedEngine(str(tmp_path))) as url:
        yield url


def run(*arguments: str) -> tuple[int, str, str]:
    """Run the command in a process of its own, as the SDK leaves connections open until its process ends."""
    command = [sys.executable, "-m", "doorstep", "conformance", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_the_result_is_one_object_and_tells_what_fails(url):
    code, out, _ = run(url, "--json", "--only", "ServiceClient.create*")
    told = json.loads(out)
    assert code == min(1, told["failed"])
    assert told["passed"] + told["failed"] == len(told["calls"])
    assert (told["sdk"], told["model"]) == ("0.38.0", "tiny")
    assert {"name", "group", "ok", "ms", "error"} == set(told["calls"][0])


def test_a_person_gets_a_table_and_what_is_wrong(url):
    code, out, err = run(url, "--only", "grad_clip_norm", "--limit", "5")
    assert code == 1  # the scripted engine has no gradients
    assert "gradients" in out
    assert "grad_clip_norm bounds" in err


def test_an_address_where_nothing_is():
    code, _, err = run("http://127.0.0.1:9")
    assert code == 2
    assert "nothing answers at http://127.0.0.1:9" in err


def test_a_pattern_that_matches_nothing(url):
    code, _, err = run(url, "--only", "no-such-check")
    assert code == 2
    assert "no check matches" in err
