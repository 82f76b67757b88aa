"""The real engine as the server asks for one, but in the server's own process: it cannot die by itself."""

from collections.abc import Callable
from typing import Any

from doorstep.engine.local import LocalEngine


class Shipped(LocalEngine):
    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.on_loss: list[Callable[[], None]] = []

    async def cpu_seconds(self) -> float:
        return 0.0
