"""The gateway: model calls in, answers out, every call recorded.

``dialects`` has one file per wire format (bytes and types, pure), ``providers`` one per kind of upstream; ``exchange``
is one call from request to record. Nothing below the gateway knows a wire format.
"""
