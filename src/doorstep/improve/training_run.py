"""A TrainingRun: the stages of a plan on one adapter, with safe points, so that a kill costs a few steps at most."""

import logging
import time
from collections.abc import Callable, Sequence

import msgspec
import tinker

from doorstep import ids
from doorstep.errors import EngineError
from doorstep.improve.plan import Job, Progress
from doorstep.improve.stages import Stage, StepListener
from doorstep.store import Store
from doorstep.types import TrainingStep

log = logging.getLogger(__name__)

BREAKS = 3  # without a step of progress between them: it is no accident


class TrainingRun:
    """Drives the stages in order.

    ``cpu_clock`` returns the CPU seconds that training has used so far, as soon as there is an engine.
    """

    def __init__(
        self,
        job: Job,
        service: tinker.ServiceClient,
        rest: tinker.RestClient,
        store: Store,
        *,
        cpu_clock: Callable[[], float],
        listener: StepListener | None = None,
    ) -> None:
        self._job = job
        self._service = service
        self._rest = rest
        self._store = store
        self._cpu_clock = cpu_clock
        self._listener = listener
        self._client: tinker.TrainingClient | None = None

    def train(self, stages: Sequence[Stage]) -> dict[str, str]:
        """Run what is left of the stages; return the ``tinker://`` path of each stage's sampler weights."""
        for stage in stages:
            if stage.name not in self._job.progress().samplers:
                self._run(stage)
        return self._job.progress().samplers

    def _run(self, stage: Stage) -> None:
        """Run a stage; where it breaks off, for the engine or the way to it died, go on from the last safe point."""
        breaks = 0
        while True:
            before = self._job.progress()
            try:
                self._go_on(stage)
            except tinker.TinkerError as error:
                breaks = breaks + 1 if self._job.progress() == before else 1
                if breaks == BREAKS:
                    raise EngineError(f"training broke off {BREAKS} times at the same place: {error}") from error
                log.warning("training broke off and goes on from its last safe point: %s", error)
                self._client = None
            else:
                return

    def _go_on(self, stage: Stage) -> None:
        progress = self._job.progress()
        first = progress.step if progress.stage == stage.name else 0
        wall, cpu = time.monotonic(), self._cpu_clock()  # first: it waits for an engine that is being started again
        client = self._client or self._open(progress)
        self._client = client
        for step in range(first, stage.steps):
            started = time.monotonic()
            metrics = stage.step(client, step)
            self._record(stage, step, metrics | {"seconds": time.monotonic() - started})
            if (step + 1) % self._job.plan.checkpoint_every == 0 or step + 1 == stage.steps:
                now, used = time.monotonic(), self._cpu_clock()
                self._safe_point(client, stage.name, step + 1, now - wall, used - cpu)
                wall, cpu = now, used
        path = client.save_weights_for_sampler(stage.name).result().path
        progress = self._job.progress()
        self._job.save(msgspec.structs.replace(progress, samplers=progress.samplers | {stage.name: path}))

    def _open(self, progress: Progress) -> tinker.TrainingClient:
        if progress.state:
            return self._service.create_training_client_from_state_with_optimizer(progress.state).result()
        plan = self._job.plan
        return self._service.create_lora_training_client(plan.base, rank=plan.rank, seed=plan.seed).result()

    def _safe_point(self, client: tinker.TrainingClient, stage: str, step: int, seconds: float, cpu: float) -> None:
        before = self._job.progress()
        state = client.save_state(f"{stage}-{step:05d}", overwrite=True).result().path
        self._job.save(
            msgspec.structs.replace(
                before,
                stage=stage,
                step=step,
                state=state,
                seconds=before.seconds | {stage: before.seconds.get(stage, 0.0) + seconds},
                cpu_seconds=before.cpu_seconds | {stage: before.cpu_seconds.get(stage, 0.0) + cpu},
            )
        )
        if before.state:  # only the newest safe point is ever resumed from
            self._rest.delete_checkpoint_from_tinker_path(before.state).result()

    def _record(self, stage: Stage, step: int, metrics: dict[str, float]) -> None:
        """Keep a step's metrics. A step repeated after a kill gives the same ones: the first row stands."""
        job_id = self._job.plan.job_id
        step_id = f"step_{job_id.removeprefix('job_')}_{stage.name}_{step:05d}"
        if self._store.get(TrainingStep, step_id) is None:
            self._store.add(
                TrainingStep(
                    step_id=step_id,
                    training_run=job_id,
                    stage=stage.name,
                    step=step,
                    metrics=metrics,
                    at_us=ids.now_us(),
                )
            )
        if self._listener:
            self._listener(stage.name, step + 1, stage.steps, metrics)
