"""All dialects: by their names in the record and in settings, and by their paths under the gateway's root."""

from doorstep.gateway.dialects import (
    anthropic_count,
    anthropic_messages,
    gemini,
    hume,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_image_edits,
    openai_images,
    openai_responses,
    openai_speech,
    openai_transcription,
    openai_translation,
    openai_videos,
)
from doorstep.gateway.dialects.base import ChatDialect, Dialect

_AT_PATHS: tuple[Dialect, ...] = (
    openai_chat,
    openai_responses,
    openai_completions,
    openai_embeddings,
    anthropic_messages,
    anthropic_count,
    openai_images,
    openai_image_edits,
    openai_speech,
    openai_transcription,
    openai_translation,
    *hume.ALL,
)
_ALL: tuple[Dialect, ...] = (*_AT_PATHS, gemini.READER, openai_videos)  # videos are jobs, with addresses of their own
DIALECTS: dict[str, Dialect] = {dialect.NAME: dialect for dialect in _ALL}
CHATS = frozenset(name for name, dialect in DIALECTS.items() if isinstance(dialect, ChatDialect))
_PATHS = {dialect.PATH: dialect for dialect in _AT_PATHS}
HOSTED_OPENAI, _HOSTED_ANTHROPIC = "/oai/api", "/anthropic/api"  # where the hosted service of the Tinker API has them
_HOSTED: dict[str, Dialect] = {
    HOSTED_OPENAI + openai_chat.PATH: openai_chat,
    HOSTED_OPENAI + openai_completions.PATH: openai_completions,
    _HOSTED_ANTHROPIC + anthropic_messages.PATH: anthropic_messages,
    _HOSTED_ANTHROPIC + anthropic_count.PATH: anthropic_count,
}


def by_path(path: str, query: str = "") -> Dialect | None:
    """Return the dialect that is spoken at an address, such as ``/v1/chat/completions``."""
    return _PATHS.get(path) or _HOSTED.get(path) or gemini.at(path, query)


def paths() -> list[str]:
    """Return the paths, for messages."""
    return [*_PATHS, f"{gemini.PATH}MODEL:{gemini.WHOLE}", f"{gemini.PATH}MODEL:{gemini.STREAM}"]
