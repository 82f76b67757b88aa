"""Files as inputs: what people really send, and a clear message for what cannot be read."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doorstep.errors import BadInput
from doorstep.workflows.inputs import decode, load_file, parse_email, strip_tags


@pytest.fixture
def save(tmp_path: Path):
    def write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def mail(body: bytes, *headers: str) -> bytes:
    lines = ["From: Eva <eva@example.com>", "Subject: Bestellung", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def body_of(data: bytes) -> str:
    return parse_email(data, "x.eml")["body"]


def test_a_plain_mail_is_sender_subject_date_and_body():
    data = mail(b"3 Kisten Gurken\r\n", "Date: Tue, 31 Mar 2026 14:05:00 +0200")
    assert parse_email(data, "x.eml") == {
        "from": "Eva <eva@example.com>",
        "subject": "Bestellung",
        "at": "2026-03-31T14:05:00+02:00",
        "body": "3 Kisten Gurken",
    }


@pytest.mark.parametrize(
    ("charset", "encoding", "text"),
    [
        ("iso-8859-1", "latin-1", "Grüße, fünf Stück"),
        ("iso-8859-1", "cp1252", "für 12 € – „gut“"),  # declared Latin-1, written by Windows
        ("utf-8", "cp1252", "für 12 € – „gut“"),  # declared wrongly
        ("gb18030", "gb18030", "三箱黄瓜"),
        ("gb2312", "gb18030", "王喆要三箱黄瓜"),  # 喆 is not in GB 2312
        ("utf-16", "utf-16", "三箱黄瓜"),
        ("no-such-set", "utf-8", "fünf"),
        ("us-ascii", "utf-8", "fünf"),
    ],
)
def test_encodings_as_declared_and_as_meant(charset, encoding, text):
    import base64

    headers = f"Content-Type: text/plain; charset={charset}", "Content-Transfer-Encoding: base64"
    assert body_of(mail(base64.encodebytes(text.encode(encoding)), *headers)) == text


def test_html_only_mail_becomes_lines():
    page = b"<style>p {color: red}</style><!--[if mso]><xml>96</xml><![endif]-->"
    page += b"<p>Hallo&nbsp;Team,</p>a &lt; b<br>Gru\xc3\x9f"
    assert body_of(mail(page, "Content-Type: text/html; charset=utf-8")) == "Hallo Team,\na < b\nGruß"


def test_table_cells_do_not_run_together():
    assert strip_tags("<tr><td>3</td><td>Kisten</td></tr>").strip() == "3 Kisten"


@pytest.mark.parametrize("page", ["<" * 500_000, "<script" * 100_000, "<!--" * 200_000, "<p " * 300_000])
def test_hostile_html_costs_no_more_than_its_length(page):
    began = time.monotonic()
    strip_tags(page)
    assert time.monotonic() - began < 5


def multipart(plain: bytes, page: bytes) -> bytes:
    parts = b"--x\r\nContent-Type: text/plain\r\n\r\n" + plain + b"\r\n--x\r\nContent-Type: text/html\r\n\r\n" + page
    return mail(parts + b"\r\n--x--\r\n", "MIME-Version: 1.0", 'Content-Type: multipart/alternative; boundary="x"')


def test_the_plain_part_wins_and_keeps_the_quoted_thread():
    thread = b"Doch 4 statt 3.\r\n\r\n> Am Montag schrieb Eva:\r\n> 3 Kisten\r\n"
    assert "> 3 Kisten" in body_of(multipart(thread, b"<p>Doch 4</p>"))


def test_a_blank_plain_part_gives_way_to_the_html():
    assert body_of(multipart(b"  ", b"<p>3 Kisten</p>")) == "3 Kisten"


def test_a_mail_without_headers_is_its_text():
    assert body_of(b"please send three boxes") == "please send three boxes"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.eml", b"", "the file is empty"),
        ("a.eml", b"\x89PNG\r\n\x1a\n\0\0\0", "binary file, not an e-mail"),
        ("a.txt", b"%PDF-1.7\n\0", "binary file, not text"),
        ("a.EML", mail(b"  \r\n"), "the e-mail has no text"),
        ("a.eml", mail(b"JVBERi0=", "Content-Type: application/pdf"), "no text part"),
        ("a.json", b"{oops", "not valid JSON"),
        ("a.json", b'{"q": NaN}', "not valid JSON"),
        ("a.json", rb'"\ud83d"', "not valid JSON"),
        ("a.json", b"[" * 100_000, "not valid JSON"),
    ],
)
def test_an_unusable_file_is_one_clear_error(save, name, data, message):
    with pytest.raises(BadInput, match=message) as caught:
        load_file(save(name, data))
    assert caught.value.where.endswith(name)


def test_a_huge_mail_is_refused_without_reading_it(tmp_path):
    with (tmp_path / "big.eml").open("wb") as file:
        file.truncate(50_000_000)
    with pytest.raises(BadInput, match="50 MB is above the limit of 20 MB"):
        load_file(tmp_path / "big.eml")


def test_a_file_that_is_not_there_or_a_folder_is_said(tmp_path):
    with pytest.raises(BadInput, match="No such file"):
        load_file(tmp_path / "none.txt")
    with pytest.raises(BadInput, match="cannot be read"):
        load_file(tmp_path)


def test_text_files_in_any_usual_encoding():
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "cp1252"):
        assert decode("fünf – €".encode(encoding), "x.txt") == "fünf – €"


def test_json_is_read_as_a_value(save):
    assert load_file(save("a.json", b'{"qty": 3}')) == {"qty": 3}


LINES = st.sampled_from(
    [
        b"From: ",
        b"Date: ",
        b"Subject: ",
        b"Content-Type: ",
        b"text/html",
        b"multipart/mixed; boundary=x",
        b"--x",
        b"\r\n",
    ]
)


@given(st.lists(LINES | st.binary(max_size=12), max_size=20).map(b"".join))
def test_any_bytes_are_a_mail_that_can_be_stored_or_a_bad_input(data):
    try:
        found = parse_email(data, "x.eml")
    except BadInput:
        return
    assert json.dumps(found, ensure_ascii=False).encode()
