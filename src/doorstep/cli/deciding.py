"""``doorstep promote``, ``rollback`` and ``decision``: move the traffic, move it back, and check why it moved."""

from typing import Annotated

import msgspec
import typer

from doorstep import config
from doorstep.cli import output
from doorstep.cli.improving import verdict_line
from doorstep.cli.models import served_model
from doorstep.cli.output import Json, say
from doorstep.cli.working import Data
from doorstep.config import Settings
from doorstep.errors import NotFound, UsageError
from doorstep.routing import decisions, routes
from doorstep.store import Store
from doorstep.types import Decision, ModelVersion, Route

DecisionId = Annotated[str, typer.Argument(help="The decision, as improve and report name it.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command(epilog="Example: doorstep promote orders")(promote)
    app.command(epilog="Example: doorstep rollback orders --why 'wrong units since Monday'")(rollback)
    group = typer.Typer(help="Look at a decision, and compute it again from the record.", no_args_is_help=True)
    group.command(epilog="Example: doorstep decision show decision_01k…")(show)
    group.command(epilog="Example: doorstep decision verify decision_01k… --json")(verify)
    app.add_typer(group, name="decision", epilog="Example: doorstep decision verify decision_01k…")


def promote(
    name: Annotated[str, typer.Argument(help="The workflow.")],
    decision: Annotated[str | None, typer.Option(help="Decision to follow; default: the newest one.")] = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Move a workflow's traffic to the candidate that the gate decided for.

    A decision that says hold moves nothing.
    """
    settings = config.load(overrides={"data": data})
    with Store.open(settings.record) as store:
        made = decisions.decision_of(store, decision) if decision else _newest(store, name)
        if made.workflow != name:
            raise UsageError(f"{made.decision_id} is about '{made.workflow}', not '{name}'")
        route = move_traffic(store, settings, made)
    _tell(route, as_json)


def rollback(
    name: Annotated[str, typer.Argument(help="The workflow.")],
    why: Annotated[str, typer.Option(help="The reason, kept with the decision.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Move a workflow's traffic back to what served before the last promotion."""
    settings = config.load(overrides={"data": data})
    with Store.open(settings.record) as store:
        route = routes.rollback(store, name, why=why, made_by="person")
    _tell(route, as_json)


def show(decision_id: DecisionId, data: Data = None, as_json: Json = False) -> None:
    """Show a decision with its evidence."""
    settings = config.load(overrides={"data": data})
    with Store.open(settings.record) as store:
        made = decisions.decision_of(store, decision_id)
    if as_json:
        output.emit(made)
        return
    statistics = [[key, msgspec.json.encode(value).decode()] for key, value in made.statistics.items()]
    output.show_table(verdict_line(made), ["evidence", "value"], statistics)


def verify(decision_id: DecisionId, data: Data = None, as_json: Json = False) -> None:
    """Compute a decision again from the stored rows. Exit 1 when anything comes out otherwise."""
    settings = config.load(overrides={"data": data})
    with Store.open(settings.record) as store:
        same = decisions.verify(store, decision_id)
    if as_json:
        output.emit({"id": decision_id, "same": same})
    else:
        say("The same: plan, data and every statistic." if same else "NOT the same: the rows or the plan were changed.")
    if not same:
        raise typer.Exit(1)


def move_traffic(store: Store, settings: Settings, decision: Decision) -> Route:
    """Route a workflow to the candidate of a decision."""
    champion = served_model(store, settings, decision.workflow, decision.champion)
    model = candidate_of(store, decision).path
    return routes.promote(store, decision.decision_id, model=model, champion_model=champion.model)


def candidate_of(store: Store, decision: Decision) -> ModelVersion:
    """Return the trained model that a decision is about: the one whose improvement made the measured runs."""
    evaluation = str(decision.data_query.get("candidate_evaluation", ""))
    for version in store.select(ModelVersion, workflow=decision.workflow, variant=decision.candidate):
        if evaluation.startswith(f"{version.recipe['plan']['job_id']}/"):
            return version
    raise NotFound(f"the model of decision {decision.decision_id} is not in this record. Nothing was moved.")


def _newest(store: Store, workflow: str) -> Decision:
    made = store.select(Decision, workflow=workflow, kind="promote", order_by="-at_us", limit=1)
    if not made:
        raise NotFound(f"'{workflow}' has no decision yet. Make one: doorstep improve {workflow}")
    return made[0]


def _tell(route: Route, as_json: bool) -> None:
    if as_json:
        output.emit(route)
    else:
        say(f"'{route.workflow}' is now served by {route.variant} ({route.model}). Decision: {route.decision_id}")
