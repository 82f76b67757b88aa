"""Redaction: takes secrets and personal data out of what leaves the record.

It knows what keys, passwords, addresses and numbers look like, and checks what can be checked (the sums of IBANs and
cards, real IP addresses), so that order numbers and versions stay. Names and postal addresses have no such form and are
not found. Each find becomes its kind in brackets, such as ``[email]``.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

Found = Counter[str]  # how often each kind was found


class Rule(NamedTuple):
    """One kind of find. ``end`` says, for a match, where in it the find ends, 0 for none. Its group ``kept`` stays."""

    kind: str
    pattern: re.Pattern[str]
    end: Callable[[re.Match[str]], int] = lambda match: match.end() - match.start()


def redact(text: str) -> tuple[str, Found]:
    """Return a text without secrets and personal data, and what was found."""
    found: Found = Counter()
    for rule in RULES:
        text = rule.pattern.sub(lambda match, rule=rule: _replacement(rule, match, found), text)  # type: ignore[misc]
    return text, found


def redact_value(value: Any) -> tuple[Any, Found]:
    """Return a JSON value with all its texts redacted, also those that only their name tells: ``{"password": …}``."""
    found: Found = Counter()
    return _redacted(value, found), found


def _redacted(value: Any, found: Found, name: str = "") -> Any:
    if isinstance(value, dict):
        return {_text(str(key), found): _redacted(inner, found, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_redacted(inner, found, name) for inner in value]
    if isinstance(value, str):
        kind = _kind_by_name(name, value)
        if kind is None:
            return _text(value, found)
        found[kind] += 1
        return f"[{kind}]"
    if isinstance(value, int) and not isinstance(value, bool):
        text = _text(str(value), found)
        return value if text == str(value) else text
    return value


def _text(text: str, found: Found) -> str:
    text, more = redact(text)
    found += more
    return text


def _replacement(rule: Rule, match: re.Match[str], found: Found) -> str:
    end = rule.end(match)
    if not end:
        return match[0]
    found[rule.kind] += 1
    kept = match.groupdict().get("kept", "")
    return f"{kept}[{rule.kind}]{match[0][end:]}"


# What a find must fulfil beyond its form


def _whole(fulfils: bool, match: re.Match[str]) -> int:
    return match.end() - match.start() if fulfils else 0


def _digits(text: str) -> str:
    return "".join(character for character in text if character in "0123456789")


def _is_key(match: re.Match[str]) -> int:
    """A key has digits; words with hyphens have few."""
    return _whole(len(_digits(match[0])) >= 3, match)


def _is_secret(match: re.Match[str]) -> int:
    """What follows ``token:`` may also be a word, or a count."""
    value = match[0][len(match["kept"]) :]
    return _whole(any(map(str.isdigit, value)) and any(map(str.isalpha, value)), match)


def _is_password(match: re.Match[str]) -> int:
    """What follows ``password:`` may also be a word, such as ``required``, or a piece of a program."""
    value = match[0][len(match["kept"]) :].rstrip(".,;:!?)}]")
    is_code = re.match(r"[A-Za-z_.]+[(\[]|[\[<$*]", value) is not None
    return 0 if len(value) < 6 or value.isalpha() or is_code else len(match["kept"]) + len(value)


def _is_bearer(match: re.Match[str]) -> int:
    return _whole(bool(_digits(match[0])), match)


def _is_email(match: re.Match[str]) -> int:
    """``icon@2x.png`` is a picture, and ``git@`` nobody's address."""
    local, _, domain = match[0].partition("@")
    return _whole(local != "git" and not re.match(r"[1-9]x\.", domain), match)


def _is_iban(match: re.Match[str]) -> int:
    """Its country says how long it is, so that what comes after it is not taken for a part of it."""
    length = IBAN_LENGTHS.get(match[0][:2].upper(), 0)
    places = [place for place, character in enumerate(match[0]) if character.isalnum()]
    if not length or len(places) < length:
        return 0
    end = places[length - 1] + 1
    if match[0][end : end + 1].isalnum():
        return 0
    code = "".join(character for character in match[0][:end].upper() if character.isalnum())
    number = "".join(str(int(character, 36)) for character in code[4:] + code[:4])
    return end if int(number) % 97 == 1 else 0


def _is_card(match: re.Match[str]) -> int:
    digits = _digits(match[0])
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    total = sum(map(int, digits[::-2])) + sum(number - 9 if number > 9 else number for number in doubled)
    return _whole(total % 10 == 0 and re.match(CARD_ISSUERS[len(digits)], digits) is not None, match)


def _is_international(match: re.Match[str]) -> int:
    """With America's and Russia's codes a number has 11 digits; elsewhere 9 to 15."""
    digits = _digits(match[0])
    return _whole(len(digits) == 11 if digits[0] in "17" else 9 <= len(digits) <= 15, match)


def _is_named_phone(match: re.Match[str]) -> int:
    number = match[0][len(match["kept"]) :]
    is_date = re.fullmatch(r"[0-9]{4}[-./][0-9]{2}[-./][0-9]{2}|[0-9]{2}[-./][0-9]{2}[-./][0-9]{4}", number)
    return _whole(7 <= len(_digits(number)) <= 15 and not is_date, match)


def _is_american(match: re.Match[str]) -> int:
    """Order numbers have this form too; then they are called so."""
    before = match.string[max(0, match.start() - 24) : match.start()]
    return _whole(re.search(NAMES_OF_NUMBERS, before) is None, match)


def _is_public_ip(match: re.Match[str]) -> int:
    """Addresses of one's own network tell of nobody; four numbers with dots may also be a version or a section."""
    before = match.string[max(0, match.start() - 12) : match.start()]
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return 0
    known_otherwise = re.search(r"(?i)(?:\bv|version:?|release|section|chapter|§|[a-z]/)\s*$", before)
    is_public = address.is_global and not address.is_multicast and (address.version == 4 or match[0][0] in "23")
    return _whole(is_public and known_otherwise is None, match)


# The names of JSON fields that say what is in them

SECRET_NAME = re.compile(
    r"(?i)(?:.*[_-])?(?:api[_-]?key|password|passwd|pwd|secret|(?:access|refresh|auth|id)[_-]?token|private[_-]?key|"
    r"client[_-]?secret|secret[_-]?key|authorization)"
)
PHONE_NAME = re.compile(r"(?i)(?:.*[_-])?(?:phone|telephone|mobile|fax|tel|cell)(?:[_-]?(?:number|no))?")


def _kind_by_name(name: str, value: str) -> str | None:
    if SECRET_NAME.fullmatch(name) and len(value) >= 6 and not value.startswith("["):
        return "secret"
    if PHONE_NAME.fullmatch(name) and len(_digits(value)) >= 7:
        return "phone"
    return None


# The forms. Every repetition is bounded or of one simple class: a text of many megabytes takes no longer by the piece.

START = r"(?<![A-Za-z0-9])"  # \b would not see a beginning after a Chinese character
KEYS = (
    r"(?:sk|rk|pk|whsec)_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{24,}",  # Stripe
    r"pk-lf-[A-Za-z0-9-]{20,}",
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}",
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",  # AWS
    r"gsk_[A-Za-z0-9]{32,}",  # Groq
    r"xai-[A-Za-z0-9]{40,}",
    r"hf_[A-Za-z0-9]{30,}",
    r"r8_[A-Za-z0-9]{30,}",  # Replicate
    r"pplx-[A-Za-z0-9]{32,}",
    r"fw_[A-Za-z0-9]{20,}",  # Fireworks
    r"tgp_v1_[A-Za-z0-9_-]{30,}",  # Together
    r"tvly-[A-Za-z0-9-]{20,}",
    r"lsv2_(?:pt|sk)_[A-Za-z0-9_]{30,}",  # LangSmith
    r"tml-[A-Za-z0-9_-]{32,}",  # our own
    r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,}",
    r"glpat-[A-Za-z0-9_-]{20,}",
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{60,}",
    r"dckr_pat_[A-Za-z0-9_-]{20,}",
    r"dop_v1_[a-f0-9]{64}",
    r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",  # Shopify
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{20,}",  # Slack
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # SendGrid
    r"ATATT3[A-Za-z0-9_=-]{50,}",  # Atlassian
    r"[0-9]{8,10}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])",  # Telegram
)
QUOTE = r"(?:\\{0,3}[\"'])?"  # also inside JSON that is text of JSON
IS = rf"{QUOTE}\s{{0,3}}(?:[:=]|\bis\b|：)\s{{0,3}}{QUOTE}"
SECRET_WORDS = (
    r"(?:api[_ -]?key|secret(?:[_ -]?access)?(?:[_ -]?key)?|(?:access|auth|refresh)[_ -]?token|client[_-]?secret|"
    r"account[_-]?key|token)"
)
PASSWORD_WORDS = r"(?:password|passwd|passphrase|passwort|kennwort|pwd|mot de passe|contraseña|密码)"
PHONE_WORDS = (
    r"(?:telephone|telefon|tel|phone|mobile|mobil|handy|cell|fax|whatsapp|call me(?: at| on)?|téléphone|teléfono|"
    r"telefono|电话|手机)(?: ?(?:number|no|nr|号码?))?"
)
NAMES_OF_NUMBERS = (
    r"(?i)(?:order|invoice|ticket|case|part|item|sku|ref|reference|tracking|serial|customer|article|bestellung|"
    r"rechnung|auftrag|artikel|id|no|nr|#)[a-z]{0,8}\W{0,4}$"
)
CARD_ISSUERS = {  # by the number of digits
    15: r"3[47]",
    16: r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|6011|64[4-9]|65|35|62",
    17: r"62",
    18: r"62",
    19: r"4|6011|64[4-9]|65|62",
}
IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU", 31: "MT SC", 32: "LC",
    }.items()
    for country in countries.split()
}  # fmt: skip


RULES = (
    Rule(
        "private_key",
        re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----[^-]*(?:-----END [A-Z0-9 ]{0,40}-----)?"),
    ),
    Rule(
        "password",
        re.compile(r"(?P<kept>\b[a-zA-Z][a-zA-Z0-9+.-]{1,30}://[^\s/:@\"']{0,100}:)(?![\[<{$])[^\s/@\"']{1,200}(?=@)"),
    ),
    Rule("token", re.compile(START + r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")),
    Rule("api_key", re.compile(START + "sk-[A-Za-z0-9_-]{20,}"), _is_key),  # OpenAI, Anthropic, OpenRouter, Langfuse, …
    Rule("api_key", re.compile(START + f"(?:{'|'.join(KEYS)})")),
    Rule("token", re.compile(START + r"(?P<kept>(?i:bearer|basic)\s{1,3})[A-Za-z0-9._~+/-]{16,}=*"), _is_bearer),
    Rule(
        "secret",
        re.compile(rf"(?P<kept>(?i:(?<![a-z]){SECRET_WORDS}){IS})[A-Za-z0-9._~+/=-]{{12,}}+(?![(\[])"),
        _is_secret,
    ),
    Rule("password", re.compile(rf"(?P<kept>(?i:{PASSWORD_WORDS}){IS})[^\s\"'\\]{{6,}}"), _is_password),
    Rule(
        "email",
        re.compile(r"(?<![\w.+%-])[\w.+%'-]{1,64}@(?:[\w-]{1,63}\.){1,8}(?:[^\W\d_]{2,24}|xn--[a-z0-9-]{2,59})(?!\w)"),
        _is_email,
    ),
    Rule("iban", re.compile(START + r"[A-Za-z]{2}[0-9]{2}(?:[ \u00a0-]?[A-Za-z0-9]){11,30}"), _is_iban),
    Rule(
        "card",
        re.compile(
            r"(?<![A-Za-z0-9.])(?:[0-9]{4}(?P<gap>[ \u00a0-]?)[0-9]{4}(?P=gap)[0-9]{4}(?P=gap)[0-9]{4,7}|"
            r"3[47][0-9]{2}[ \u00a0-]?[0-9]{6}[ \u00a0-]?[0-9]{5})(?![A-Za-z0-9])"
        ),
        _is_card,
    ),
    Rule(
        "phone", re.compile(r"(?<![A-Za-z0-9+])\+1[ .()-]{0,2}[2-9][0-9]{2}[ .()-]{0,2}[0-9]{3}[ .-]?[0-9]{4}(?![0-9])")
    ),
    Rule(
        "phone",
        re.compile(r"(?<![A-Za-z0-9+])\+[1-9](?:[ .()/\u00a0-]{0,3}[0-9]){6,14}(?![0-9])"),
        _is_international,
    ),
    Rule(
        "phone",
        re.compile(
            rf"(?P<kept>(?i:(?<![a-z]){PHONE_WORDS})(?:{QUOTE}[\s:.：]{{0,4}}{QUOTE}))[0-9(][0-9 ()/.-]{{5,18}}[0-9]"
        ),
        _is_named_phone,
    ),
    Rule(
        "phone",
        re.compile(
            r"(?<![A-Za-z0-9.-])(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[.-][0-9]{4}(?![A-Za-z0-9-])"
        ),
        _is_american,
    ),
    Rule("ip", re.compile(r"(?<![A-Za-z0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\.?[A-Za-z0-9])"), _is_public_ip),
    Rule(
        "ip", re.compile(r"(?<![A-Za-z0-9:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![A-Za-z0-9:])"), _is_public_ip
    ),
)
