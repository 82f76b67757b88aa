"""OpenAI image edits, ``/v1/images/edits``: a form with pictures, or JSON that refers to them; passes through."""

from doorstep.gateway.dialects import openai_images

NAME = "openai.image_edits"
PATH = "/v1/images/edits"
MOST_BYTES = openai_images.MOST_BYTES

head = openai_images.head
with_model = openai_images.with_model
is_last = openai_images.is_last
understand = openai_images.understand
messages = openai_images.messages
sampling = openai_images.sampling
error = openai_images.error
