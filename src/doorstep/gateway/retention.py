"""Retention: how long what was said in the calls of each key is kept. The rows stay, as ids, times and numbers."""

import logging
import time
from pathlib import Path

from doorstep import ids
from doorstep.errors import UsageError
from doorstep.gateway.keys import Keys
from doorstep.gateway.media.artefacts import Artefacts
from doorstep.store import Store

log = logging.getLogger(__name__)

EVERY_S = 3600.0
DAY_US = 86_400_000_000


class Retention:
    """Blanks, once an hour, the calls that are older than their key keeps them, and removes what they had made."""

    def __init__(self, data: Path) -> None:
        self._artefacts = Artefacts(data)
        self._keys = Keys(data)
        self._next = 0.0

    def keep(self, store: Store) -> None:
        """Blank what is too old, when it is time to look again."""
        if time.monotonic() < self._next:
            return
        try:
            for key in self._keys.all():
                if key.retention_days is not None:
                    erased = store.expire(ids.now_us() - key.retention_days * DAY_US, key.key_id)
                    for name in erased.artefacts:
                        self._artefacts.delete(name)
        except (UsageError, OSError) as error:  # calls are recorded all the same
            log.error("what is kept too long is not forgotten: %s", error)
        self._next = time.monotonic() + EVERY_S
