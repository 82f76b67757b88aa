"""Two commands at once on one data folder share a server, whoever of them ends first."""

import json
import subprocess

import pytest
from company import PATIENCE_S, WORKFLOW, Company, wait_until

pytestmark = pytest.mark.slow

FEW, MANY = 5, 300


@pytest.fixture
def company(improved, tmp_path) -> Company:
    company = improved.copy(tmp_path / "company")
    company.doorstep("promote", WORKFLOW)
    for count in (FEW, MANY):
        lines = [{"id": f"n{i}", "input": f"send {10 + i % 90} crates of figs for box {i}"} for i in range(count)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (company.folder / f"{count}.jsonl").write_text(text, "utf-8")
    return company


def _start(company: Company, count: int) -> subprocess.Popen[str]:
    return company.start("run", WORKFLOW, f"{count}.jsonl", "--json")


def _done(process: subprocess.Popen[str]) -> tuple[int, int]:
    """Return how many inputs a run had and how many of them failed."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    report = json.loads(out)
    return report["n"], report["failed"]


def test_two_commands_that_start_together_do_all_their_work(company):
    few, many = _start(company, FEW), _start(company, MANY)
    assert _done(few) == (FEW, 0)
    assert _done(many) == (MANY, 0)
    wait_until(lambda: not (company.data / "server.json").exists())


def test_a_command_that_ends_leaves_its_server_to_the_one_that_still_works(company):
    few = _start(company, FEW)
    wait_until((company.data / "server.json").exists, few)
    many = _start(company, MANY)
    assert _done(few) == (FEW, 0)
    assert _done(many) == (MANY, 0)


def test_a_command_whose_neighbour_is_killed_goes_on(company):
    before = company.rows("run")
    few = _start(company, FEW)
    wait_until((company.data / "server.json").exists, few)
    many = _start(company, MANY)
    wait_until(lambda: company.rows("run") > before + FEW, many)
    few.kill()
    few.communicate()
    assert _done(many) == (MANY, 0)
