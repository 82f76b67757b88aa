"""OpenAI translation of speech into English, ``/v1/audio/translations``: as transcription is, in every field."""

from doorstep.gateway.dialects import openai_transcription

NAME = "openai.translation"
PATH = "/v1/audio/translations"
MOST_BYTES = openai_transcription.MOST_BYTES

head = openai_transcription.head
with_model = openai_transcription.with_model
is_last = openai_transcription.is_last
understand = openai_transcription.understand
messages = openai_transcription.messages
sampling = openai_transcription.sampling
error = openai_transcription.error
