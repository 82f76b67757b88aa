"""Files as inputs: text, JSON and e-mail, with a limit on size and clear errors. Knows no workflow."""

import email
import email.policy
import html
import re
from email.message import EmailMessage, MIMEPart
from pathlib import Path
from typing import Any

import msgspec

from doorstep.errors import BadInput

MAX_BYTES = 20_000_000  # what mail servers let through with its attachments

# Mail programs declare the small set and write the large one: "iso-8859-1" with a euro sign, "gb2312" with rare names.
SUPERSETS = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "gb2312": "gb18030", "gbk": "gb18030"}
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def load_file(path: Path) -> Any:
    """Read one input by its ending: ``.json`` as a value, ``.eml`` as ``from, subject, at, body``, else as text."""
    data = read_bytes(path)
    kind = path.suffix.lower()
    if kind == ".eml":
        return parse_email(data, str(path))
    text = decode(data, str(path))
    if kind == ".json":
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadInput(str(path), f"not valid JSON: {error}") from None
    return text


def read_bytes(path: Path) -> bytes:
    """Read a file that is there, not empty, and within the limit."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise BadInput(str(path), "the file is empty")
        if size > MAX_BYTES:
            limit = f"the limit of {MAX_BYTES / 1e6:.0f} MB for one input"
            raise BadInput(str(path), f"{size / 1e6:.0f} MB is above {limit}")
        return path.read_bytes()
    except OSError as error:
        raise BadInput(str(path), f"cannot be read: {error.strerror}") from None


def decode(data: bytes, where: str) -> str:
    """Decode by the byte-order mark, else as UTF-8, else as Windows' Western set; refuse what is not text at all."""
    try:
        if data.startswith(UTF16_MARKS):
            return data.decode("utf-16")
        if b"\0" in data:
            raise BadInput(where, "this is a binary file, not text")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return _western(data)


def parse_email(data: bytes, where: str) -> dict[str, str]:
    """Return sender, subject, date (ISO) and the plain body of an RFC 5322 message."""
    if b"\0" in data:
        raise BadInput(where, "this is a binary file, not an e-mail")
    try:
        message = email.message_from_bytes(data, policy=email.policy.default)
        fields = {
            "from": str(message.get("From", "")),
            "subject": str(message.get("Subject", "")),
            "at": _date(message),
            "body": _body(message, where),
        }
    except BadInput:
        raise
    except Exception as error:  # the parser's own slips on malformed headers: IndexError, AttributeError and others
        raise BadInput(where, f"the e-mail is malformed ({type(error).__name__}: {error})") from None
    # A raw byte in a header comes out as half a character, which is no text.
    return {name: value.encode("utf-8", "replace").decode() for name, value in fields.items()}


def _date(message: EmailMessage) -> str:
    header = message.get("Date")
    when = getattr(header, "datetime", None)
    return when.isoformat() if when else ""


def _body(message: EmailMessage, where: str) -> str:
    """Return the plain text, or where that is missing or blank the text of the HTML."""
    parts = [(kind, message.get_body((kind,))) for kind in ("plain", "html")]
    if all(part is None for _, part in parts):
        raise BadInput(where, "the e-mail has no text part")
    for kind, part in parts:
        text = "" if part is None else _part_text(part, where)
        body = (strip_tags(text) if kind == "html" else text).strip()
        if body:
            return body
    raise BadInput(where, "the e-mail has no text")


def _part_text(part: MIMEPart, where: str) -> str:
    payload = part.get_payload(decode=True)
    raw = payload if isinstance(payload, bytes) else b""
    declared = (part.get_content_charset() or "utf-8").lower()
    charset = SUPERSETS.get(declared, declared)
    try:
        return raw.decode(charset)
    except (LookupError, ValueError):
        return decode(raw, where)


def _western(data: bytes) -> str:
    """Decode Windows-1252; where it has no character, Latin-1, so that nothing fails."""
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def strip_tags(markup: str) -> str:
    """Return the text of HTML, one line per block. No pattern looks far ahead: a hostile page costs its length."""
    visible = _without(markup, "<!--", "-->")
    for name in ("script", "style", "title"):
        visible = _without(visible, rf"<{name}\b", rf"</{name}\b[^<>]*>")
    visible = re.sub(r"(?i)<(?:br|/p|/div|/tr|/li|/h\d)\b[^<>]*>", "\n", visible)
    visible = re.sub(r"(?i)</t[dh]\b[^<>]*>", " ", visible)
    return html.unescape(re.sub(r"</?[a-zA-Z!][^<>]*>", "", visible)).replace("\xa0", " ")


def _without(markup: str, opening: str, closing: str) -> str:
    """Cut out all ``opening … closing``; what is never closed reaches to the next opening."""
    first, *rest = re.split(opening, markup, flags=re.IGNORECASE)
    after = [re.split(closing, piece, maxsplit=1, flags=re.IGNORECASE)[1:] for piece in rest]
    return first + "".join(piece for pieces in after for piece in pieces)
