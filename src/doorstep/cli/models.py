"""Which model a command means: the one with the traffic, a stage of the last improvement, or one by name."""

import msgspec

from doorstep.config import Settings
from doorstep.errors import NotFound
from doorstep.grading.calibration import Calibration
from doorstep.store import Store
from doorstep.types import ModelVersion, Route

BASE = "base"
NOT_MEASURED = Calibration(raw=[], right=[], n=0)  # nothing is known to be right: a person looks at every answer


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A variant with the name under which the gateway serves it."""

    variant: str
    model: str
    calibration: Calibration | None = None
    decision_id: str | None = None


def served_model(store: Store, settings: Settings, workflow: str, variant: str | None) -> Served:
    """Resolve a variant: ``None`` is the route, then ``base``, a trained stage, or any model of the gateway."""
    if variant is None:
        route = newest(store.select(Route, workflow=workflow))
        if route is None or route.variant == BASE:
            return _base(settings)
        return Served(
            variant=route.variant,
            model=route.model,
            calibration=calibration_of(store, workflow, route.model),
            decision_id=route.decision_id,
        )
    if variant == BASE:
        return _base(settings)
    version = newest_version(store, workflow, variant)
    if version is not None:
        return Served(variant=variant, model=version.path, calibration=calibration_of(store, workflow, version.path))
    if "/" in variant:
        return Served(variant=variant, model=variant)
    raise NotFound(
        f"'{workflow}' has no variant '{variant}'. There is base, what doorstep improve made, and PROVIDER/MODEL."
    )


def calibration_of(store: Store, workflow: str, path: str) -> Calibration | None:
    """Return how the confidence of a trained model is to be read."""
    for version in store.select(ModelVersion, workflow=workflow):
        if version.path == path and "calibration" in version.recipe:
            return msgspec.convert(version.recipe["calibration"], Calibration)
    return None


def newest_version(store: Store, workflow: str, variant: str) -> ModelVersion | None:
    """Return the newest trained model of this name."""
    versions = store.select(ModelVersion, workflow=workflow, variant=variant)
    return max(versions, key=lambda version: version.created_us, default=None)


def newest(routes: list[Route]) -> Route | None:
    """Return the route that counts now."""
    return max(routes, key=lambda route: (route.at_us, route.route_id), default=None)


def _base(settings: Settings) -> Served:
    if not settings.serve.model:
        raise NotFound("No local model is configured; name one with --variant PROVIDER/MODEL or serve --model tiny.")
    return Served(variant=BASE, model=settings.serve.model)
