"""Unusable files through ``doorstep run`` on the order desk: a clear message each, the rest goes on, a row each."""

import json
from pathlib import Path

import pytest
from company import Company, Ended

from doorstep.store import Store
from doorstep.types import Node

pytestmark = pytest.mark.slow

MAIL = "From: Ana <ana@bistro.example>\nSubject: order\nDate: Mon, 02 Mar 2026 09:00:00 +0000\n"
GOOD = f"{MAIL}\n12 crates of tomatoes for Wednesday please\n".encode()
CP1252 = f"{MAIL}Content-Type: text/plain; charset=utf-8\n\nzwölf Kisten für Müller, 9 € je Kiste\n".encode("cp1252")
GB18030 = f"{MAIL}Content-Type: text/plain; charset=gb18030\n\n请送十二箱番茄，明天要\n".encode("gb18030")


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> tuple[Company, Ended, dict[str, dict]]:
    """Run the base over an inbox of good and bad mail; return the company, how it ended, and the rows by id."""
    company = Company(tmp_path_factory.mktemp("desk"))
    company.doorstep("init", "orders", "--example", "orders")
    catalogue = company.folder / "workflows/orders/catalogue.csv"
    catalogue.write_text(catalogue.read_text("utf-8") + catalogue.read_text("utf-8").splitlines()[1] + "\n", "utf-8")
    _fill(company.folder / "mail")
    ended = company.doorstep("run", "orders", "mail", "--variant", "base", "--out", "out.jsonl", "--json")
    rows = [json.loads(line) for line in (company.folder / "out.jsonl").read_text("utf-8").splitlines()]
    return company, ended, {row["id"]: row for row in rows}


def _fill(mail: Path) -> None:
    mail.mkdir()
    (mail / "empty.eml").touch()
    with (mail / "huge.eml").open("wb") as file:
        file.write(GOOD)
        file.truncate(50_000_000)
    (mail / "picture.eml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)))
    (mail / "good.eml").write_bytes(GOOD)
    (mail / "cp1252.eml").write_bytes(CP1252)
    (mail / "gb18030.eml").write_bytes(GB18030)


def test_every_file_has_one_row_and_the_command_succeeds(desk):
    _, ended, rows = desk
    assert set(rows) == {"empty", "huge", "picture", "good", "cp1252", "gb18030"}
    assert ended.json["n"] == 6


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("empty", "the file is empty"),
        ("huge", "50 MB is above the limit of 20 MB for one input"),
        ("picture", "this is a binary file, not an e-mail"),
    ],
)
def test_an_unusable_file_says_which_and_why_and_goes_to_a_person(desk, name, why):
    _, ended, rows = desk
    assert f"{name}.eml: {why}" in rows[name]["error"]
    assert rows[name]["needs_person"]
    assert any(f"{name}.eml: {why}" in problem for problem in ended.json["problems"])


def test_goods_that_are_in_the_catalogue_twice_are_named(desk):
    assert desk[1].err.count("is there twice; the first line counts") == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("cp1252", "zwölf Kisten für Müller, 9 € je Kiste"), ("gb18030", "请送十二箱番茄，明天要")],
    ids=["utf-8 declared, cp1252 written", "gb18030"],
)
def test_a_mail_in_another_encoding_than_it_says_or_than_usual_reaches_the_model_as_it_was_written(desk, name, words):
    company, _, rows = desk
    with Store.open(company.data / "doorstep.db") as store:
        asked = [node for node in store.select(Node, run_id=rows[name]["run_id"]) if node.role == "user"]
        assert words in store.blob(asked[0].content_digest).decode()
