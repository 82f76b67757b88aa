"""The training service: sessions, models and samplers, and the promises of what was asked of them.

Knows no HTTP (see ``app``). A model is an adapter of the engine under the name of its training run, and lives as
long as its session; a sampler is a folder on disk that the engine loads when it is asked to sample from it. Everything
belongs to a tenant, and what is another's is not there.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from doorstep import ids
from doorstep.config import TrainingSettings
from doorstep.engine.api import Engine, LoraSpec
from doorstep.engine.kinds import SURROGATE
from doorstep.errors import DoorstepError, EngineError, NotFound, UsageError
from doorstep.training import codec, operations, sampling, wire
from doorstep.training.adapters import SamplerAdapters
from doorstep.training.capacity import Capacity
from doorstep.training.customloss import CustomLosses
from doorstep.training.journal import Journal
from doorstep.training.operations import Tools, Turn
from doorstep.training.paths import Kind, parse, run_id_of, split_run_id
from doorstep.training.promises import SAMPLE, Answer, Lane, Promises, Work
from doorstep.training.provenance import Provenance
from doorstep.training.registry import Registry, Session, TrainingRun
from doorstep.training.samplers import Samplers
from doorstep.training.steps import StepLog
from doorstep.training.tenants import Quotas, Usage

log = logging.getLogger(__name__)

Authenticate = Callable[[Mapping[str, str]], str | None]

IDLE_SESSION_S = 900.0  # the SDK sends a heartbeat every 10 s
LOOK_S = 60.0  # how often to look for sessions that are idle
CAPACITY_BYTES = 64 << 20  # of training requests in the engine at once; as numbers they take some five times as much


def one_tenant(headers: Mapping[str, str]) -> str | None:
    """Accept any key that the SDK itself would send."""
    return "local" if headers.get("x-api-key", "").startswith("tml-") else None


class _Model(msgspec.Struct, frozen=True):
    """A model that is live: whose it is, and its operations in order."""

    owner: str
    lane: Lane


class Service:
    """The training service on one engine and one folder. Make it by ``await Service.start(…)``; ``close`` it.

    ``authenticate`` returns the tenant whom a request's headers prove, or None. Methods raise UsageError for what
    cannot work and NotFound for what is not there, or another tenant's.
    """

    surrogate = SURROGATE  # what a client is told once

    def __init__(
        self, tools: Tools, promises: Promises, authenticate: Authenticate, aliases: Mapping[str, str]
    ) -> None:
        self.info = tools.info
        self.registry = tools.registry
        self.samplers = tools.samplers
        self.quotas = tools.quotas
        self.steps = tools.steps
        self.promises = promises
        self.authenticate = authenticate
        self.names = (self.info.name, *(name for name, model in aliases.items() if self._is_base(model)))
        self._tools = tools
        self._engine = tools.engine
        self._models: dict[str, _Model] = {}
        self._seen = dict.fromkeys(promises.sessions(), time.monotonic())
        self._copies = 0
        self._text: sampling.Detokenize | None = None
        self._looking = asyncio.create_task(self._look())

    @classmethod
    async def start(
        cls,
        engine: Engine,
        data: Path,
        authenticate: Authenticate = one_tenant,
        settings: TrainingSettings = TrainingSettings(),  # noqa: B008 - frozen
    ) -> "Service":
        """Read what is on disk under ``data/training``."""
        codec.schema()
        folder = data / "training"
        registry = await asyncio.to_thread(Registry, folder / "sessions")
        await asyncio.to_thread(registry.sweep)
        usage = await asyncio.to_thread(Usage, folder / "usage.jsonl")
        await asyncio.to_thread(usage.compact)
        info = await engine.info()
        adapters = SamplerAdapters(engine, settings.sampler_bytes)
        tools = Tools(
            engine=engine,
            info=info,
            registry=registry,
            samplers=Samplers(registry, engine, info.digest, adapters, folder / "unnamed"),
            quotas=Quotas(settings, usage, registry),
            steps=StepLog(registry.steps_file),
            provenance=Provenance(),
            losses=CustomLosses(folder / "losses"),
            capacity=Capacity(CAPACITY_BYTES),
        )
        journal = await asyncio.to_thread(Journal, folder / "journal")
        return cls(tools, Promises(journal), authenticate, settings.aliases)

    async def close(self) -> None:
        """Let operations that run come to their end, and give those that wait one."""
        self._looking.cancel()
        for model_id in list(self._models):
            await self._end(model_id, "the server is being stopped")
        await self.samplers.close()
        self.promises.close()

    def forget(self) -> None:
        """Let all models go, for the engine that held them has died; a client goes on from what it saved."""
        for model in self._models.values():
            model.lane.cut("the engine died before this operation's turn", "server")
        self._models.clear()
        self.samplers.forget()

    async def check(self) -> None:
        """Raise EngineUnavailable when there is no engine just now."""
        await self._engine.info()

    # Sessions

    async def create_session(self, request: wire.CreateSession, tenant: str) -> str:
        """Begin a session; return its id."""
        session = Session(
            session_id=ids.new_id("session"),
            owner=tenant,
            created_us=ids.now_us(),
            sdk_version=request.sdk_version,
            tags=request.tags,
            user_metadata=request.user_metadata,
            project_id=request.project_id,
            display_name=request.display_name,
        )
        await asyncio.to_thread(self.registry.put_session, session)
        return session.session_id

    def heartbeat(self, session_id: str, tenant: str) -> bool:
        """Note that the client lives; return whether the session still does."""
        alive = self.registry.session(session_id, tenant).finished is None
        self._seen[session_id] = time.monotonic()
        return alive

    async def finish_session(self, session_id: str, reason: str, tenant: str) -> None:
        """End a session and free what it held in the engine; the first reason stays."""
        session = self.registry.session(session_id, tenant)
        try:
            if session.finished is None:
                await asyncio.to_thread(self.registry.put_session, msgspec.structs.replace(session, finished=reason))
        finally:  # a full disk must not keep what the session holds
            await self._release(session_id)

    async def release_idle(self) -> None:
        """Let go of the models of sessions that went silent."""
        silent = time.monotonic() - IDLE_SESSION_S
        for session_id in [known for known, seen in self._seen.items() if seen < silent]:
            await self._release(session_id)

    def create_custom_loss(self, request: wire.CreateCustomLoss, tenant: str) -> str:
        """Keep a loss for a session; return the request id of a promise."""
        self._live_session(request.session_id, tenant)
        request_id = f"{request.session_id}:loss:{request.custom_loss_seq_id}"
        work = partial(operations.create_custom_loss, self._tools, request)
        self.promises.start(request_id, tenant, "create_custom_loss", work)
        return request_id

    # Models: each returns the request id of a promise

    def create_model(self, request: wire.CreateModel, tenant: str) -> str:
        """Make an adapter."""
        operations.check_optimizer(request.optimizer_config)
        base, spec = self._base(request.base_model), _spec(request.lora_config)
        run = self._new_run(request.session_id, request.model_seq_id, tenant, base, spec, request.user_metadata)
        return self._open(run, "create_model", partial(operations.create, self._tools, run))

    def create_from(self, request: wire.LoadWeights, tenant: str) -> str:
        """Make a model of a checkpoint."""
        operations.check_load(request)
        if request.session_id is None or request.model_seq_id is None:
            raise UsageError("load_weights needs model_id and seq_id, or session_id and model_seq_id")
        path = parse(request.path)
        self.samplers.checkpoint(path, tenant)
        base = self._base(request.base_model) if request.base_model else self.registry.run(path.run_id, None).base
        run = self._new_run(request.session_id, request.model_seq_id, tenant, base, LoraSpec(), request.user_metadata)
        run = msgspec.structs.replace(run, parent=request.path)
        work = partial(operations.create_from, self._tools, run, request.optimizer)
        return self._open(run, "load_weights", work)

    def forward_backward(self, message: Any, size: int, tenant: str, forward_only: bool = False) -> str:
        """Add to a model's gradients; ``size`` is the message's in bytes."""
        only = forward_only or message.forward_only

        async def work(turn: Turn) -> Answer:
            return await operations.forward_backward(self._tools, turn, message, size, only)

        return self._take_turn("forward_backward", message.model_id, message.seq_id, tenant, work, size)

    def optim_step(self, body: bytes, tenant: str) -> str:
        """Step a model's optimiser."""
        return self._take_turn_of("optim_step", body, tenant, operations.optim_step)

    def save_weights(self, body: bytes, tenant: str) -> str:
        """Save a model with its optimiser."""
        return self._take_turn_of("save_weights", body, tenant, operations.save_weights)

    def load_weights(self, body: bytes, tenant: str) -> str:
        """Load a checkpoint into a live model."""
        return self._take_turn_of("load_weights", body, tenant, operations.load)

    def save_weights_for_sampler(self, body: bytes, tenant: str) -> str:
        """Save a model to sample from it: under a name, or for one sampling session."""
        return self._take_turn_of("save_weights_for_sampler", body, tenant, operations.save_for_sampler)

    def save_weights_external(self, body: bytes, tenant: str) -> str:
        """Save a model as files to be taken away."""
        return self._take_turn_of("save_weights_external", body, tenant, operations.save_external)

    def model(self, model_id: str, tenant: str) -> TrainingRun:
        """Return a model that is live in the engine."""
        self._live(model_id, tenant)
        return self.registry.run(model_id, tenant)

    # Sampling

    async def create_sampling_session(self, request: wire.CreateSamplingSession, tenant: str) -> str:
        """Begin to sample from a checkpoint or from the base; return the sampling session's id."""
        self._live_session(request.session_id, tenant)
        if request.model_path is None:
            base = self._base(request.base_model)
        else:
            path = parse(request.model_path)
            self.samplers.checkpoint(path, tenant)
            base = self.registry.run(path.run_id, None).base
        number = request.sampling_session_seq_id
        return await self.samplers.create(request.session_id, number, request.model_path, base, tenant)

    def join_sampling_session(self, sampler_id: str, tenant: str) -> int:
        """Return a number for a copy of a sampling client; none comes twice, not after a restart either."""
        self.samplers.get(sampler_id, tenant)
        self._copies = max(self._copies + 1, int(time.time()))
        return self._copies

    async def sample(self, request: wire.Sample, size: int, tenant: str) -> tuple[str, list[str]]:
        """Begin to sample; return the request id and one id per sequence to come."""
        sampler = self.samplers.get(request.sampling_session_id, tenant)
        self._live_session(sampler.session_id, tenant)
        plan = await sampling.plan(request, self.info, self._engine)  # first: it bounds the number of samples
        request_id = f"{sampler.sampler_id}:{request.seq_id}"
        sequence_ids = [f"{request_id}:{index}" for index in range(plan.n)]
        if self.promises.holds(request_id, tenant):
            return request_id, sequence_ids
        self.quotas.admit_tokens(tenant, len(plan.prompt) + plan.n)
        text = self._detokenizer() if plan.text_stops else None
        turn = Turn(tenant=tenant, run_id=sampler.sampler_id, request_id=request_id)
        work = partial(operations.sample, self._tools, turn, request, plan, text)
        self.promises.start(request_id, tenant, SAMPLE, work, size)
        return request_id, sequence_ids

    async def adapter_for(self, path: str, tenant: str | None) -> str:
        """Return the engine's adapter for a checkpoint, loaded if it was not; NotFound when there is none.

        ``tenant`` None may read all: it is the operator's own route.
        """
        return await self.samplers.adapter_for(parse(path), tenant)

    # What is told

    def shown(self, base: str) -> str:
        """Return how a base is told to a client, which makes its tokenizer of it.

        A name as of a model hub, or a folder, is told as it was asked for; the server's own short name means nothing
        elsewhere, and becomes the folder.
        """
        return base if "/" in base and base != self.info.folder else self.base_path

    @property
    def base_path(self) -> str:
        """The base model's folder, spelt so that the SDK can load the tokenizer from it.

        The SDK takes a name with exactly two slashes for ``org/model/variant`` and cuts the last part off.
        """
        path = str(Path(self.info.folder).resolve())
        return f"/.{path}" if path.count("/") == 2 else path

    def why_waiting(self, request_id: str) -> str | None:
        """Return why a request has to wait for others', None when it does not."""
        return self._tools.capacity.why(request_id)

    def live_models(self) -> int:
        """Return how many models the engine holds."""
        return len(self._models)

    def queued(self) -> Counter[str]:
        """Return how many operations of each kind wait or run."""
        return self.promises.queued()

    # How the above is done

    def _base(self, name: str | None) -> str:
        if name is None or (name not in self.names and name not in (self.base_path, self.info.folder)):
            known = ", ".join(self.names)
            raise NotFound(f"base model {name!r} is not served here. There is: {known}, also as {self.base_path}.")
        return name

    def _is_base(self, model: str) -> bool:
        """Tell whether an alias in the settings is for the model that is served."""
        here = Path(self.info.folder).resolve()
        return model == self.info.name or Path(model).expanduser().resolve() == here

    def _new_run(
        self, session_id: str, number: int, tenant: str, base: str, spec: LoraSpec, metadata: dict[str, Any] | None
    ) -> TrainingRun:
        self._live_session(session_id, tenant)
        run_id = run_id_of(session_id, number)
        split_run_id(run_id)
        return TrainingRun(
            run_id=run_id,
            owner=tenant,
            base=base,
            base_digest=self.info.digest,
            spec=spec,
            created_us=ids.now_us(),
            user_metadata=metadata,
        )

    def _live_session(self, session_id: str, tenant: str) -> None:
        if self.registry.session(session_id, tenant).finished is not None:
            raise UsageError(f"session {session_id} is finished; make a new ServiceClient")
        self._seen[session_id] = time.monotonic()

    def _open(self, run: TrainingRun, kind: str, create: Work) -> str:
        """Give a model its lane, with its creation as turn 0; a retry finds both there."""
        request_id = f"{run.run_id}:0"
        if self.promises.holds(request_id, run.owner):
            return request_id
        self.quotas.admit_model(run.owner, sum(model.owner == run.owner for model in self._models.values()))

        async def work() -> Answer:
            try:
                return await create()
            except DoorstepError:
                self._models.pop(run.run_id, None)
                await self._let_go(run.run_id)  # it may be there already, and its record could not be written
                raise

        if fulfil := self.promises.open(request_id, run.owner, kind):
            self._models[run.run_id] = _Model(run.owner, Lane())
            self._models[run.run_id].lane.submit(0, fulfil, work)
        return request_id

    def _take_turn_of(
        self, kind: str, body: bytes, tenant: str, operation: Callable[[Tools, Turn, bytes], Awaitable[Answer]]
    ) -> str:
        turn = wire.read(body, wire.Turn)

        async def work(turn: Turn) -> Answer:
            return await operation(self._tools, turn, body)

        return self._take_turn(kind, turn.model_id, turn.seq_id, tenant, work, len(body))

    def _take_turn(
        self, kind: str, model_id: str, seq_id: int, tenant: str, work: Callable[[Turn], Awaitable[Answer]], size: int
    ) -> str:
        if seq_id < 1:
            raise UsageError(f"seq_id is {seq_id}; a model's operations are numbered from 1")
        request_id = f"{model_id}:{seq_id}"
        if self.promises.holds(request_id, tenant):  # a retry, be it after a restart
            return request_id
        lane = self._live(model_id, tenant).lane
        if fulfil := self.promises.open(request_id, tenant, kind, size):
            lane.submit(seq_id, fulfil, partial(work, Turn(tenant=tenant, run_id=model_id, request_id=request_id)))
        return request_id

    def _live(self, model_id: str, tenant: str) -> _Model:
        model = self._models.get(model_id)
        if model is None or model.owner != tenant:
            raise NotFound(self._why_not_live(model_id, tenant))
        self._seen[split_run_id(model_id)[0]] = time.monotonic()
        return model

    def _why_not_live(self, model_id: str, tenant: str) -> str:
        self.registry.run(model_id, tenant)
        ended = f"model {model_id} is not live here: its session ended, or the engine or the server was started again"
        saved = [each for each in self.registry.checkpoints(model_id, tenant) if parse(each.path).kind is Kind.WEIGHTS]
        if not saved:
            return f"{ended}, and it was never saved. Begin anew, and save_state now and then."
        return (
            f"{ended}. Go on from its last saved state with "
            f"create_training_client_from_state_with_optimizer({saved[-1].path!r})."
        )

    def _detokenizer(self) -> sampling.Detokenize:
        if self._text is None:
            self._text = sampling.detokenizer(Path(self.info.folder))
        return self._text

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.release_idle()
            except Exception:
                log.exception("a session that went silent could not be let go")

    async def _release(self, session_id: str) -> None:
        self._seen.pop(session_id, None)
        for model_id in [known for known in self._models if split_run_id(known)[0] == session_id]:
            await self._end(model_id, f"the session of model {model_id} ended before this operation's turn")
        self.promises.drop(f"{session_id}:")
        await self.samplers.release(session_id)

    async def _end(self, model_id: str, why: str) -> None:
        if model := self._models.pop(model_id, None):  # a session can be finished twice at once
            await model.lane.close(why)
            await self._let_go(model_id)

    async def _let_go(self, model_id: str) -> None:
        with suppress(EngineError):  # never made, or the engine is gone: either way it holds nothing
            await self._engine.drop_adapter(model_id)


def _spec(lora: wire.LoraConfig) -> LoraSpec:
    if lora.rank < 0:
        raise UsageError("lora_config.rank must be at least 1, or 0 to train the matrices themselves")
    return LoraSpec(
        rank=lora.rank,
        seed=lora.seed or 0,
        train_attn=lora.train_attn,
        train_mlp=lora.train_mlp,
        train_unembed=lora.train_unembed,
    )
