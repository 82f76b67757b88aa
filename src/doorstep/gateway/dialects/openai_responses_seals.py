"""Sealed reasoning: only its maker can open it, so a seal must come home as it left, through whatever dialect.

On the wire of Responses ``encrypted_content`` is OpenAI's own seal, or begins with ``doorstep.signature:`` or
``doorstep.redacted:`` and then is the signature or the redacted thinking of another provider. In the canonical form
OpenAI's seal begins with ``openai:``; so it travels through other dialects, as a signature beside a text and as
redacted thinking without one. A provider is never sent the seal of another.
"""

from doorstep.gateway.chat import Thinking

_OPENAI = "openai:"
_SIGNATURE = "doorstep.signature:"
_REDACTED = "doorstep.redacted:"


def canonical(sealed: str | None, text: str) -> tuple[str | None, str | None]:
    """Return signature and redacted thinking of an ``encrypted_content`` beside a text."""
    if not sealed:
        return None, None
    if sealed.startswith(_SIGNATURE):
        return sealed.removeprefix(_SIGNATURE), None
    if sealed.startswith(_REDACTED):
        return None, sealed.removeprefix(_REDACTED)
    return (_OPENAI + sealed, None) if text else (None, _OPENAI + sealed)


def for_client(signature: str | None, redacted: str | None) -> str | None:
    """Return the ``encrypted_content`` that a client is to send back."""
    if redacted is not None:
        return redacted.removeprefix(_OPENAI) if redacted.startswith(_OPENAI) else _REDACTED + redacted
    if signature is not None:
        return signature.removeprefix(_OPENAI) if signature.startswith(_OPENAI) else _SIGNATURE + signature
    return None


def for_provider(thinking: Thinking) -> str | None:
    """Return the ``encrypted_content`` if it is OpenAI's own."""
    seal = thinking.signature if thinking.redacted is None else thinking.redacted
    return seal.removeprefix(_OPENAI) if seal and seal.startswith(_OPENAI) else None
