"""Settings: one small value per part, read once from ``doorstep.toml`` and the environment.

Environment variables win over the file: ``DOORSTEP_SERVE_PORT=9000`` sets ``port`` under ``[serve]``.
"""

import hashlib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from doorstep.errors import UsageError

FILE = "doorstep.toml"
DATABASE = "doorstep.db"  # in the data folder
TINY = Path(__file__).parent / "models" / "tiny"

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Usd = Annotated[float, msgspec.Meta(ge=0)]

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
PositiveSeconds = Annotated[float, msgspec.Meta(gt=0)]


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Doorstep listens, keeps its data, and which local model it holds."""

    host: str = "127.0.0.1"
    port: int = 8000
    data: str = ".doorstep"  # folder of the store, checkpoints and captures
    model: str | None = "tiny"  # ``tiny`` (shipped), a local folder, a name on the hub; "" for no local model
    threads: int = 0  # the most of the engine; 0: all cores. Small models and calls take one
    device: Literal["cpu", "cuda", "auto"] = "cpu"  # of the engine; auto: CUDA where there is one
    quantise: Literal["none", "nf4"] = "none"  # nf4: the base's matrices in four bits a number


ProviderKind = Literal["openai", "compatible", "anthropic", "google", "hume", "any-llm"]


class ProviderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A hosted or local service, ``[providers.NAME]``; its models are called ``NAME/MODEL``."""

    base_url: str = ""  # with the version in it, such as https://api.openai.com/v1; only any-llm knows its own
    kind: ProviderKind = "compatible"  # whose API it has; compatible: OpenAI's chat completions
    options: dict[str, Any] | None = None  # for any-llm: ``provider``, as it calls the service, and what that one takes
    key_env: str | list[str] | None = None  # the environment variables that hold its keys
    speaks: list[str] | None = None  # the dialects that it takes as they are, where they are not its kind's
    stream_usage: bool = True  # ask for the usage of streams whose client did not, which their cost is known by
    first_byte_s: PositiveSeconds = 60.0
    idle_s: PositiveSeconds = 60.0
    total_s: PositiveSeconds = 600.0

    def __post_init__(self) -> None:
        if self.kind != "any-llm":
            if not self.base_url:
                raise ValueError("`base_url` is missing: the service's address, with the version in it")
            if self.options is not None:
                raise ValueError(f'`options` is for kind = "any-llm", not for "{self.kind}"')
        elif not isinstance((self.options or {}).get("provider"), str):
            raise ValueError('kind = "any-llm" needs options = {provider = "…"}, such as "bedrock"')

    @property
    def key_names(self) -> list[str]:
        """The environment variables that may hold a key."""
        return [self.key_env] if isinstance(self.key_env, str) else self.key_env or []


class ModelPrice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model costs in US dollars, ``[prices.models."PROVIDER/MODEL"]``; it counts before every price list.

    Tokens and characters by the million. A part of the tokens without a price of its own costs what the others do.
    """

    input: Usd | None = None
    output: Usd | None = None
    cached: Usd | None = None  # of the input, read from the provider's cache
    cache_write: Usd | None = None  # of the input, written to it
    reasoning: Usd | None = None  # of the output
    input_audio: Usd | None = None
    output_audio: Usd | None = None
    input_image: Usd | None = None
    output_image: Usd | None = None
    characters: Usd | None = None  # of a speech
    images: Usd | None = None  # each
    seconds: Usd | None = None  # each, of sound or video
    seconds_480p: Usd | None = None  # each, of video with this many lines
    seconds_720p: Usd | None = None
    seconds_1080p: Usd | None = None
    seconds_2160p: Usd | None = None
    requests: Usd | None = None  # each


class PriceSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What calls cost, where no price list says it."""

    core_hour_usd: Usd = 0.05  # of our own computing; a usual on-demand price of one shared cloud core, early 2026
    models: dict[str, ModelPrice] = {}


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the record is kept."""

    url: str | None = None  # such as postgresql+psycopg://user:password@host/name; None: a file in the data folder


class TrafficSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How hard a call is tried before its failure is the client's."""

    retries: Count = 2  # of the same target, after passing trouble
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 8  # at all targets together
    budget_s: Seconds = 30.0  # after which no target is waited for or asked again; the next one still is
    backoff_s: Seconds = 0.5  # before the first retry; doubles each time
    backoff_most_s: Seconds = 8.0
    first_chunk_s: PositiveSeconds | None = None  # of a stream: none by then, and the next target is asked, if any


class CacheSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The exact-match cache. It answers only where a model in ``[models.NAME]`` or a request turns it on."""

    ttl_s: PositiveSeconds = 3600.0
    most_bytes: Count = 64_000_000  # of all answers together


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A target's part of an alias's traffic."""

    model: str
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A name of your own for one or more models, ``[models.NAME]``. What is not said is as in ``[traffic]``."""

    targets: Annotated[list[str | Share], msgspec.Meta(min_length=1)]  # share its calls by weight
    fallback: list[str] = []  # tried in this order when they fail
    retries: Count | None = None
    attempts: Annotated[int, msgspec.Meta(ge=1)] | None = None
    budget_s: Seconds | None = None
    first_chunk_s: PositiveSeconds | None = None
    cache: Literal["off", "key", "all"] = "off"  # who is given a kept answer: the same key, or every key

    def policy(self, traffic: TrafficSettings) -> TrafficSettings:
        """Return the traffic settings with what this model says otherwise."""
        own = {name: getattr(self, name) for name in ("retries", "attempts", "budget_s", "first_chunk_s")}
        said = {name: value for name, value in own.items() if value is not None}
        return msgspec.structs.replace(traffic, **said)


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How limits are kept; the limits themselves belong to keys and workflows."""

    unknown_price: Literal["refuse", "allow"] = "refuse"  # of a call under a budget: allowed, it counts as nothing


class WorkflowSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much the calls of one workflow may ask for and spend, with whatever key."""

    models: tuple[str, ...] = ()  # patterns of names that may be asked for; none: all
    requests_per_minute: AtLeastOne | None = None
    tokens_per_minute: AtLeastOne | None = None
    usd_per_day: Usd | None = None
    usd_per_month: Usd | None = None


class TrainingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training on the local model, and how much of it each tenant may hold and use (``max_…``; 0 is no limit)."""

    aliases: dict[str, str] = {}  # other names of models: "Qwen/Qwen3-8B" = "tiny", or a folder as under [serve]
    max_models: Count = 0  # live at once
    max_tokens_per_day: Count = 0  # trained, scored and sampled; days are those of UTC
    max_checkpoint_bytes: Count = 0
    sampler_bytes: Count = 2 << 30  # of adapters that the engine holds to sample from; others wait on disk


class TelemetrySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where spans and metrics of the record are sent, in OpenTelemetry's format."""

    otlp: Annotated[str, msgspec.Meta(pattern="^https?://")] | None = None  # a collector: http://127.0.0.1:4318
    content: bool = False  # also what was asked and answered, without the secrets and personal data that are found


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings."""

    serve: ServeSettings = ServeSettings()
    store: StoreSettings = StoreSettings()
    prices: PriceSettings = PriceSettings()
    providers: dict[str, ProviderSettings] = {}
    models: dict[str, ModelSettings] = {}
    traffic: TrafficSettings = TrafficSettings()
    cache: CacheSettings = CacheSettings()
    limits: LimitSettings = LimitSettings()
    workflows: dict[str, WorkflowSettings] = {}
    training: TrainingSettings = TrainingSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def data(self) -> Path:
        """The data folder."""
        return Path(self.serve.data)

    @property
    def record(self) -> str:
        """Where the record is: a database's address, or the path of a file in the data folder."""
        return self.store.url or str(self.data / DATABASE)


# Reached by nothing but their key in the environment. ``[providers.NAME]`` of the same name changes what it says, and
# stands for itself where it says ``base_url``, so that no key goes to another address than it was made for.
KNOWN_PROVIDERS = {
    "openai": ProviderSettings(base_url="https://api.openai.com/v1", kind="openai", key_env="OPENAI_API_KEY"),
    "anthropic": ProviderSettings(
        base_url="https://api.anthropic.com/v1", kind="anthropic", key_env="ANTHROPIC_API_KEY"
    ),
    "google": ProviderSettings(
        base_url="https://generativelanguage.googleapis.com/v1beta",
        kind="google",
        key_env="GEMINI_API_KEY",
    ),
    "hume": ProviderSettings(base_url="https://api.hume.ai/v0", kind="hume", key_env="HUME_API_KEY"),
    "deepseek": ProviderSettings(base_url="https://api.deepseek.com/v1", key_env="DEEPSEEK_API_KEY"),
    "zai": ProviderSettings(base_url="https://api.z.ai/api/paas/v4", key_env="ZAI_API_KEY"),
    "openrouter": ProviderSettings(base_url="https://openrouter.ai/api/v1", key_env="OPENROUTER_API_KEY"),
    "mistral": ProviderSettings(base_url="https://api.mistral.ai/v1", key_env="MISTRAL_API_KEY"),
    "groq": ProviderSettings(base_url="https://api.groq.com/openai/v1", key_env="GROQ_API_KEY"),
    "together": ProviderSettings(base_url="https://api.together.xyz/v1", key_env="TOGETHER_API_KEY"),
    "fireworks": ProviderSettings(base_url="https://api.fireworks.ai/inference/v1", key_env="FIREWORKS_API_KEY"),
    "xai": ProviderSettings(base_url="https://api.x.ai/v1", key_env="XAI_API_KEY"),
}


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings; ``overrides`` are ``[serve]`` values from the command line, ``None`` meaning not given."""
    file = path or Path(FILE)
    try:
        values: dict[str, Any] = tomllib.loads(file.read_text("utf-8")) if file.exists() else {}
        _apply_environment(values, os.environ)
        serve = values.setdefault("serve", {})
        serve.update({key: value for key, value in (overrides or {}).items() if value is not None})
        _complete_known(values.get("providers"))
        settings = msgspec.convert(values, Settings, strict=False)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {error}. See docs/reference.md for the settings that exist.") from None
    found = {name: known for name, known in KNOWN_PROVIDERS.items() if any(map(os.environ.get, known.key_names))}
    return msgspec.structs.replace(settings, providers=found | settings.providers)


def weights_digest(folder: Path) -> str:
    """Return the SHA-256 over a model's weight files in the order of their names: what makes two bases the same."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            while part := opened.read(1 << 24):
                digest.update(part)
    return digest.hexdigest()


def _complete_known(providers: Any) -> None:
    """Fill in what is known of a provider and not said in the file."""
    if isinstance(providers, dict):
        for name, known in KNOWN_PROVIDERS.items():
            said = providers.get(name)
            if isinstance(said, dict) and "base_url" not in said and said.get("kind") != "any-llm":
                providers[name] = msgspec.to_builtins(known) | said


def _apply_environment(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    for section, kind in (
        ("serve", ServeSettings),
        ("store", StoreSettings),
        ("prices", PriceSettings),
        ("traffic", TrafficSettings),
        ("cache", CacheSettings),
        ("limits", LimitSettings),
        ("training", TrainingSettings),
        ("telemetry", TelemetrySettings),
    ):
        for field in kind.__struct_fields__:
            value = environment.get(f"DOORSTEP_{section}_{field}".upper())
            if value is not None:
                values.setdefault(section, {})[field] = value
