"""What is taken out of what leaves the record, measured on a list of finds and of what only looks like them."""

import time

import pytest

from doorstep.store.redaction import redact, redact_value

DIGITS = "0123456789"
LETTERS = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"  # put together, so that no scanner takes this file for a leak

FINDS = [
    ("api_key", f"use sk-proj-{LETTERS} for it"),
    ("api_key", "sk-ant-api03-" + LETTERS * 2),
    ("api_key", "OPENAI_API_KEY=" + "sk-" + "0f" * 16),
    ("api_key", "my key:sk-or-v1-" + "a1b2c3d4" * 8),
    ("api_key", "AIza" + "Sy4" + LETTERS[:32]),
    ("api_key", "AKIA" + "IOSFODNN7EXAMPLE"),
    ("api_key", "gsk_" + LETTERS * 2),
    ("api_key", "hf_" + LETTERS),
    ("api_key", "ghp_" + LETTERS),
    ("api_key", "github_pat_" + LETTERS * 2),
    ("api_key", "xoxb-" + DIGITS + "-" + LETTERS),
    ("api_key", "sk_live_" + LETTERS),
    ("api_key", "SG." + LETTERS[:22] + "." + LETTERS),
    ("api_key", "钥匙是sk-" + LETTERS),
    ("token", "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"),
    ("token", "Authorization: Bearer 9f8e7d6c5b4a39281706"),
    ("private_key", "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE KEY-----"),
    ("private_key", "-----BEGIN PRIVATE KEY-----\nMIIEvQ cut off"),
    ("secret", "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCY1"),
    ("secret", '{"api_key": "0b2f4c6d8e9a1b3c"}'),
    ("secret", '"{\\"auth_token\\": \\"0b2f4c6d8e9a1b3c\\"}"'),
    ("password", "postgresql://app:s3cr3t@db.internal:5432/app"),
    ("password", "the password is Tr0ub4dor&3"),
    ("password", "Passwort: 123456"),
    ("password", "dbPassword=hunter2!"),
    ("email", "write to jane.doe+orders@example.co.uk."),
    ("email", "联系 zhang.wei@qq.com 谢谢"),
    ("email", "o'brien@müller.de"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "IBAN:GB29NWBK60161331926819, thanks"),
    ("iban", "pay to FR14 2004 1010 0505 0001 3M02 606 by Friday"),
    ("iban", "nl91 abna 0417 1643 00"),
    ("card", "4111 1111 1111 1111 12/27 123"),
    ("card", "card 5555555555554444"),
    ("card", "3782-822463-10005"),
    ("card", "卡号6011111111111117"),
    ("phone", "call +49 170 1234567 today"),
    ("phone", "+1 (415) 555-2671 2 pieces"),
    ("phone", "+86 138 0013 8000"),
    ("phone", "(415) 555-2671"),
    ("phone", "415-555-2671"),
    ("phone", "Tel.: 030 / 901820-12"),
    ("phone", "手机：13800138000"),
    ("phone", "+33 1 23 45 67 89"),
    ("ip", "from 84.23.12.99."),
    ("ip", "client=2a00:1450:4001:81b::200e"),
]
LOOK_ALIKES = [
    "order 4711-2026-0815",
    "order no. 415-555-2671",
    "invoice 2026-11-25/00042",
    "PO 4500012345",
    "SKU 1234567890123",
    "EAN 4006381333931",
    "tracking 1Z999AA10123456784",
    "order 4111111111111112",  # a card's form with another sum
    "booking 9111111111111111",
    "DE89 3704 0044 0532 0130 01",  # an IBAN's form with another sum
    "GB82 WEST 1234",
    "ISBN 978-3-16-148410-0",
    "2026-11-25T14:05:00.123456Z",
    "at 12:30:45 on 25.11.2026",
    "total 1,234,567.89 EUR, +15 000 000 more",
    "0.4111111111111111",
    "version 1.2.3.4",
    "Chrome/120.0.6099.109 Safari/537.36",
    "10.0.0.5 and 127.0.0.1 and 192.168.1.20",
    "00:1B:44:11:3A:B7",
    "std::vector<int> a::b",
    "550e8400-e29b-41d4-a716-446655440000",
    "call_06etrq4z0h5cmc2rv3a1n8yxkd",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "icon@2x.png react@18.2.0 git@github.com:org/repo.git @jane",
    "sk-learn-compatible-estimator-pipelines",
    "risk-assessment-of-the-whole-company",
    "the password is required",
    "password = kwargs.pop('x'), token = tokens.pop(0), secret = base64.b64decode(key[6:])",
    'password: Optional[str], password="********", postgres://<user>:<password>@host',
    "224.0.0.1 and 1000:: and ::1",
    "token: 2048 tokens, max_tokens=100000000000",
    "bearer of responsibilities",
    "https://example.com:8080/a@b",
    "postgres://db.internal/app",
    "phone: see below, phone 2026-11-25",
    "hotel 4711081512",
    "mobile app 2.4.1",
    "quantity 12 x 500 ml, 3 pallets of 80",
    "-----BEGIN CERTIFICATE-----",
]


@pytest.mark.parametrize(("kind", "text"), FINDS, ids=[text[:24] for _, text in FINDS])
def test_a_secret_or_personal_datum_is_taken_out(kind, text):
    redacted, found = redact(text)
    assert found == {kind: 1}
    assert f"[{kind}]" in redacted
    assert redact(redacted) == (redacted, {})


@pytest.mark.parametrize("text", LOOK_ALIKES, ids=[text[:24] for text in LOOK_ALIKES])
def test_what_only_looks_like_one_stays(text):
    assert redact(text) == (text, {})


def test_what_is_around_a_find_stays():
    assert redact("Pay DE89 3704 0044 0532 0130 00 BITTE")[0] == "Pay [iban] BITTE"
    assert redact("postgres://app:s3cr3t@db/app")[0] == "postgres://app:[password]@db/app"
    assert redact("The password is Tr0ub4dor&3. Thanks")[0] == "The password is [password]. Thanks"
    assert redact("/x?token=0b2f4c6d8e9a1b3c&page=2")[0] == "/x?token=[secret]&page=2"
    assert redact("card 4111 1111 1111 1111 12/27")[0] == "card [card] 12/27"


def test_several_finds_are_counted_by_kind():
    redacted, found = redact("a@b.de, c@d.de or +49 170 1234567")
    assert redacted == "[email], [email] or [phone]"
    assert found == {"email": 2, "phone": 1}


def test_a_json_value_keeps_its_form():
    value = {"to": ["a@b.de", 3, None, True], "card": 4111111111111111, "n": 4111111111111112, "x@y.de": 0.5}
    redacted, found = redact_value(value)
    assert redacted == {"to": ["[email]", 3, None, True], "card": "[card]", "n": 4111111111111112, "[email]": 0.5}
    assert found == {"email": 2, "card": 1}


def test_the_name_of_a_field_tells_what_is_in_it():
    value = {"password": "correct horse", "phone": "030 901820", "properties": {"password": {"type": "string"}}}
    redacted, found = redact_value(value)
    assert redacted == {"password": "[secret]", "phone": "[phone]", "properties": {"password": {"type": "string"}}}
    assert found == {"secret": 1, "phone": 1}


@pytest.mark.parametrize(
    "text",
    ["a" * 500_000, "1 " * 250_000, "+1-" * 150_000, "a.b" * 150_000, "eyJ" * 150_000, "a:" * 250_000, "=a:" * 150_000],
)
def test_no_text_takes_long(text):
    began = time.perf_counter()
    redact(text)
    assert time.perf_counter() - began < 10
