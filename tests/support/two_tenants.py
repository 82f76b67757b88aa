"""A whole server around the scripted engine, with a key for each of two tenants."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tinker
from gateway_parts import make_folder, serving, settings_for
from scripted_engine import ScriptedEngine

from doorstep.config import TelemetrySettings, TrainingSettings
from doorstep.gateway.keys import Keys, Terms

ALIAS = "Qwen/Qwen3-8B"
DATUM = tinker.Datum(
    model_input=tinker.ModelInput.from_ints([1, 2, 3]),
    loss_fn_inputs={"target_tokens": [2, 3, 4], "weights": [1.0, 1.0, 1.0]},
)


class TrainingEngine(ScriptedEngine):
    """The scripted engine with what else the server asks of one."""

    async def cpu_seconds(self) -> float:
        return 0.0


def make_keys(data: Path) -> dict[str, str]:
    """Return a key for each tenant, by name."""
    return {name: Keys(data).create(Terms(name=name))[1] for name in ("ann", "bob")}


@contextmanager
def served(folder: Path, otlp: str | None = None, **limits: Any) -> Iterator[str]:
    """Serve on the data folder in ``folder``, with a collector where ``otlp`` is one; give the address."""
    engine = TrainingEngine(str(make_folder(folder / "model")))
    training, telemetry = TrainingSettings(aliases={ALIAS: "tiny"}, **limits), TelemetrySettings(otlp=otlp)
    settings = settings_for(folder / "data", training=training, telemetry=telemetry)
    with serving(settings, engine) as url:
        yield url
