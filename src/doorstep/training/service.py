"""The training service: sessions, models and samplers, and the promises of what was asked of them.

Knows no HTTP (see ``app``). A model is an adapter of the engine under the name of its training run, and lives as
long as its session; a sampler is a folder on disk that the engine loads when it is asked to sample from it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from doorstep import ids
from doorstep.engine.api import Engine, LoraSpec, ModelInfo
from doorstep.errors import EngineError, NotFound, UsageError
from doorstep.training import codec, operations, sampling, wire
from doorstep.training.adapters import SamplerAdapters
from doorstep.training.paths import parse, run_id_of, split_run_id
from doorstep.training.promises import PROTO, Answer, Lane, Promises, Work
from doorstep.training.registry import Registry, Session, TrainingRun
from doorstep.training.samplers import Samplers

Authenticate = Callable[[Mapping[str, str]], str | None]

IDLE_SESSION_S = 900.0  # the SDK sends a heartbeat every 10 s


def one_tenant(headers: Mapping[str, str]) -> str | None:
    """Accept any key that the SDK itself would send."""
    return "local" if headers.get("x-api-key", "").startswith("tml-") else None


class Service:
    """The training service on one engine and one folder. Make it by ``await Service.start(…)``; ``close`` it.

    ``authenticate`` returns the tenant whom a request's headers prove, or None. Methods raise UsageError for what
    cannot work and NotFound for what is not there.
    """

    def __init__(
        self, engine: Engine, info: ModelInfo, registry: Registry, samplers: Samplers, authenticate: Authenticate
    ) -> None:
        self.info = info
        self.registry = registry
        self.samplers = samplers
        self.promises = Promises()
        self.authenticate = authenticate
        self._engine = engine
        self._lanes: dict[str, Lane] = {}
        self._seen: dict[str, float] = {}
        self._text: sampling.Detokenize | None = None

    @classmethod
    async def start(
        cls, engine: Engine, data: Path, authenticate: Authenticate = one_tenant, max_samplers: int = 16
    ) -> "Service":
        """Read what is on disk under ``data/training``. The engine holds at most ``max_samplers`` to sample from."""
        codec.schema()
        folder = data / "training"
        registry = await asyncio.to_thread(Registry, folder / "sessions")
        samplers = Samplers(registry, SamplerAdapters(engine, max_samplers), folder / "unnamed")
        return cls(engine, await engine.info(), registry, samplers, authenticate)

    async def close(self) -> None:
        """Let operations that run come to their end, then give every open promise one."""
        for session_id in {split_run_id(run_id)[0] for run_id in self._lanes}:
            await self._release(session_id)
        self.promises.drop("")

    # Sessions

    async def create_session(self, request: wire.CreateSession, tenant: str) -> str:
        """Begin a session; return its id. Models of sessions that went silent are let go."""
        await self._release_idle()
        session = Session(
            session_id=ids.new_id("session"),
            owner=tenant,
            created_us=ids.now_us(),
            sdk_version=request.sdk_version,
            tags=request.tags,
            user_metadata=request.user_metadata,
        )
        await asyncio.to_thread(self.registry.put_session, session)
        return session.session_id

    def heartbeat(self, session_id: str) -> bool:
        """Note that the client lives; return whether the session still does."""
        self._seen[session_id] = time.monotonic()
        return self.registry.session(session_id).finished is None

    async def finish_session(self, session_id: str, reason: str) -> None:
        """End a session and free what it held in the engine; the first reason stays."""
        session = self.registry.session(session_id)
        if session.finished is None:
            await asyncio.to_thread(self.registry.put_session, msgspec.structs.replace(session, finished=reason))
        await self._release(session_id)

    # Models: each returns the request id of a promise

    def create_model(self, request: wire.CreateModel, tenant: str) -> str:
        """Make an adapter."""
        self._base(request.base_model)
        operations.check_optimizer(request.optimizer_config)
        spec = _spec(request.lora_config)
        run = self._new_run(request.session_id, request.model_seq_id, tenant, spec, request.user_metadata)
        return self._open(run, partial(operations.create, self._engine, self.registry, run))

    def create_from(self, request: wire.LoadWeights, tenant: str) -> str:
        """Make an adapter from a checkpoint."""
        if request.session_id is None or request.model_seq_id is None:
            raise UsageError("load_weights needs model_id and seq_id, or session_id and model_seq_id")
        operations.check_load(request)
        self.registry.checkpoint(parse(request.path))
        if request.base_model is not None:
            self._base(request.base_model)
        run = self._new_run(request.session_id, request.model_seq_id, tenant, LoraSpec(), request.user_metadata)
        run = msgspec.structs.replace(run, parent=request.path)
        return self._open(run, partial(operations.create_from, self._engine, self.registry, run, request.optimizer))

    def forward_backward(self, body: bytes) -> str:
        """Add to a model's gradients; the body is protobuf."""
        message = codec.parse_forward_backward(body)
        work = partial(operations.forward_backward, self._engine, message)
        return self._take_turn(message.model_id, message.seq_id, work)

    def optim_step(self, body: bytes) -> str:
        """Step a model's optimiser."""
        return self._take_turn_of(body, partial(operations.optim_step, self._engine, body))

    def save_weights(self, body: bytes) -> str:
        """Save a model with its optimiser."""
        return self._take_turn_of(body, partial(operations.save_weights, self._engine, self.registry, body))

    def load_weights(self, body: bytes) -> str:
        """Load a checkpoint into a live model."""
        return self._take_turn_of(body, partial(operations.load, self._engine, self.registry, body))

    def save_weights_for_sampler(self, body: bytes) -> str:
        """Save a model to sample from it: under a name, or for one sampling session."""
        work = partial(operations.save_for_sampler, self._engine, self.registry, self.samplers, body)
        return self._take_turn_of(body, work)

    def model(self, model_id: str) -> TrainingRun:
        """Return a model that is live in the engine."""
        self._lane(model_id)
        return self.registry.run(model_id)

    # Sampling

    async def create_sampling_session(self, request: wire.CreateSamplingSession) -> str:
        """Begin to sample from a checkpoint or from the base; return the sampling session's id."""
        self._live_session(request.session_id)
        if request.model_path is None:
            self._base(request.base_model)
        return await self.samplers.create(request.session_id, request.sampling_session_seq_id, request.model_path)

    def sample(self, request: wire.Sample) -> tuple[str, list[str]]:
        """Begin to sample; return the request id and one id per sequence to come."""
        plan = sampling.plan(request, self.info)
        sampler = self.samplers.get(request.sampling_session_id)
        self._live_session(sampler.session_id)
        text = self._detokenizer() if plan.text_stops else None
        request_id = f"{sampler.sampler_id}:{request.seq_id}"

        async def work() -> Answer:
            async with self.samplers.weights(sampler.sampler_id) as adapter:
                result = await sampling.run(self._engine, adapter, plan, text)
            return Answer(codec.sample_response(result.sequences, result.prompt_logprobs), PROTO)

        self.promises.start(request_id, work)
        return request_id, [f"{request_id}:{index}" for index in range(plan.n)]

    async def adapter_for(self, path: str) -> str:
        """Return the engine's adapter for a checkpoint, loaded if it was not; NotFound when there is none."""
        return await self.samplers.adapter_for(parse(path))

    @property
    def base_path(self) -> str:
        """The base model's folder, spelt so that the SDK can load the tokenizer from it.

        The SDK takes a name with exactly two slashes for ``org/model/variant`` and cuts the last part off.
        """
        path = str(Path(self.info.folder).resolve())
        return f"/.{path}" if path.count("/") == 2 else path

    # How the above is done

    def _base(self, name: str | None) -> None:
        if name not in (self.info.name, self.base_path, self.info.folder):
            raise NotFound(
                f"base model {name!r} is not served here. There is: {self.info.name}, also as {self.base_path}."
            )

    def _new_run(
        self, session_id: str, number: int, tenant: str, spec: LoraSpec, metadata: dict[str, Any] | None
    ) -> TrainingRun:
        self._live_session(session_id)
        run_id = run_id_of(session_id, number)
        split_run_id(run_id)
        return TrainingRun(
            run_id=run_id,
            owner=tenant,
            base=self.info.name,
            base_digest=self.info.digest,
            spec=spec,
            created_us=ids.now_us(),
            user_metadata=metadata,
        )

    def _live_session(self, session_id: str) -> None:
        if self.registry.session(session_id).finished is not None:
            raise UsageError(f"session {session_id} is finished; make a new ServiceClient")
        self._seen[session_id] = time.monotonic()

    def _open(self, run: TrainingRun, create: Work) -> str:
        """Give a model its lane, with its creation as turn 0; a retry finds both there."""
        self._lanes.setdefault(run.run_id, Lane())
        return self._queue(run.run_id, 0, create)

    def _take_turn_of(self, body: bytes, work: Work) -> str:
        turn = wire.read(body, wire.Turn)
        return self._take_turn(turn.model_id, turn.seq_id, work)

    def _take_turn(self, model_id: str, seq_id: int, work: Work) -> str:
        if seq_id < 1:
            raise UsageError(f"seq_id is {seq_id}; a model's operations are numbered from 1")
        return self._queue(model_id, seq_id, work)

    def _queue(self, model_id: str, seq_id: int, work: Work) -> str:
        lane = self._lane(model_id)
        request_id = f"{model_id}:{seq_id}"
        if future := self.promises.open(request_id):
            lane.submit(seq_id, future, work)
        return request_id

    def _lane(self, model_id: str) -> Lane:
        lane = self._lanes.get(model_id)
        if lane is None:
            raise NotFound(
                f"model {model_id} is not live here: its session ended or the server was restarted. Go on from its "
                "last saved state with create_training_client_from_state_with_optimizer."
            )
        self._seen[split_run_id(model_id)[0]] = time.monotonic()
        return lane

    def _detokenizer(self) -> sampling.Detokenize:
        if self._text is None:
            self._text = sampling.detokenizer(Path(self.info.folder))
        return self._text

    async def _release_idle(self) -> None:
        now = time.monotonic()
        for session_id in {split_run_id(run_id)[0] for run_id in self._lanes}:
            if now - self._seen.get(session_id, now) > IDLE_SESSION_S:
                await self._release(session_id)

    async def _release(self, session_id: str) -> None:
        for run_id in [known for known in self._lanes if split_run_id(known)[0] == session_id]:
            await self._lanes.pop(run_id).close(f"the session of model {run_id} ended before this operation's turn")
            with suppress(EngineError):  # never made, or the engine is gone: either way it holds nothing
                await self._engine.drop_adapter(run_id)
        self.promises.drop(f"{session_id}:")
        await self.samplers.release(session_id)


def _spec(lora: wire.LoraConfig) -> LoraSpec:
    if lora.rank < 1:
        raise UsageError("lora_config.rank must be at least 1")
    return LoraSpec(
        rank=lora.rank,
        seed=lora.seed or 0,
        train_attn=lora.train_attn,
        train_mlp=lora.train_mlp,
        train_unembed=lora.train_unembed,
    )
