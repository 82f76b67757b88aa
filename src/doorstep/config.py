"""Settings: one small value per part, read once from ``doorstep.toml`` and the environment.

Environment variables win over the file: ``DOORSTEP_SERVE_PORT=9000`` sets ``port`` under ``[serve]``.
"""

import hashlib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from doorstep.errors import UsageError

FILE = "doorstep.toml"
TINY = Path(__file__).parent / "models" / "tiny"


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Doorstep listens, keeps its data, and which local model it holds."""

    host: str = "127.0.0.1"
    port: int = 8000
    data: str = ".doorstep"  # folder of the store, checkpoints and captures
    model: str | None = "tiny"  # ``tiny`` (shipped), a local folder; "" for no local model
    threads: int = 0  # of the engine's matrix products; 0: two where there are two cores


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An OpenAI-compatible upstream; its models are called ``NAME/MODEL``."""

    base_url: str
    key_env: str | None = None  # environment variable that holds the key
    first_byte_s: float = 60.0
    idle_s: float = 60.0
    total_s: float = 600.0


class PriceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What our own computing costs. The default is a usual on-demand price of one shared cloud core."""

    core_hour_usd: float = 0.05


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings."""

    serve: ServeSettings = ServeSettings()
    prices: PriceSettings = PriceSettings()
    providers: dict[str, ProviderSettings] = {}

    @property
    def data(self) -> Path:
        """The data folder."""
        return Path(self.serve.data)

    @property
    def threads(self) -> int:
        """Threads of the engine: as set, else two where there are two cores."""
        return self.serve.threads or min(2, os.cpu_count() or 1)


# Reached by a few lines of configuration or by nothing but their key in the environment.
KNOWN_PROVIDERS = {
    "openai": ProviderSettings(base_url="https://api.openai.com/v1", key_env="OPENAI_API_KEY"),
    "anthropic": ProviderSettings(base_url="https://api.anthropic.com/v1", key_env="ANTHROPIC_API_KEY"),
    "deepseek": ProviderSettings(base_url="https://api.deepseek.com/v1", key_env="DEEPSEEK_API_KEY"),
    "openrouter": ProviderSettings(base_url="https://openrouter.ai/api/v1", key_env="OPENROUTER_API_KEY"),
}


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings; ``overrides`` are ``[serve]`` values from the command line, ``None`` meaning not given."""
    file = path or Path(FILE)
    try:
        values: dict[str, Any] = tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
        _apply_environment(values, os.environ)
        serve = values.setdefault("serve", {})
        serve.update({key: value for key, value in (overrides or {}).items() if value is not None})
        settings = msgspec.convert(values, Settings, strict=False)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}. See docs/reference.md for the settings that exist.") from None
    found = {name: known for name, known in KNOWN_PROVIDERS.items() if os.environ.get(known.key_env or "")}
    return msgspec.structs.replace(settings, providers=found | settings.providers)


def model_folder(name: str) -> Path:
    """Return the folder of a base model: the shipped ``tiny`` or a local folder."""
    folder = TINY if name == "tiny" else Path(name).expanduser()
    if not (folder / "config.json").exists():
        raise UsageError(
            f"{name}: no model there (config.json is missing). Give 'tiny' or a folder that holds a model."
        )
    return folder


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 over a model's weight files in the order of their names: what makes two bases the same."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _apply_environment(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    for section, kind in (("serve", ServeSettings), ("prices", PriceSettings)):
        for field in kind.__struct_fields__:
            value = environment.get(f"DOORSTEP_{section}_{field}".upper())
            if value is not None:
                values.setdefault(section, {})[field] = value
