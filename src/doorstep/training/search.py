"""Searching a tenant's sessions: what the SDK asks, and which session answers it. Touches no disk."""

from typing import Annotated, Literal

import msgspec

from doorstep.training import listing, wire
from doorstep.training.registry import Session


class Owner(wire.Message, frozen=True, kw_only=True):
    """Whose sessions: one's own, those one may see, or those of the named users."""

    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: tuple[str, ...] = ()


class Status(wire.Message, frozen=True, kw_only=True):
    """A status to match, and for finished sessions the client's reasons."""

    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: list[str] | None = None

    def takes(self, session: Session) -> bool:
        """Tell whether a session has this status."""
        status = listing.status(session)
        reason = status.get("reason", {}).get("type")
        return bool(status["type"] == self.type) and (self.reasons is None or reason in self.reasons)


class Cursor(wire.Loose, frozen=True, kw_only=True):
    """The last session of the page before."""

    last_session_id: str


class Sessions(wire.Message, frozen=True, kw_only=True):
    """What to find; everything that is given must hold, but for id and name, of which one does."""

    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] | None = None
    display_name: str | None = None
    owner: Owner = Owner()
    statuses: list[Status] | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    cursor: Cursor | None = None

    def takes(self, session: Session, tenant: str) -> bool:
        """Tell whether a session is one to find."""
        metadata = session.user_metadata or {}
        return (
            self._is_named(session)
            and (self.owner.type != "user" or tenant in self.owner.owner_urns)
            and (self.project_ids is None or listing.project(session) in self.project_ids)
            and all(metadata.get(key) == value for key, value in (self.user_metadata or {}).items())
            and (self.statuses is None or any(status.takes(session) for status in self.statuses))
            and (self.cursor is None or session.session_id < self.cursor.last_session_id)
        )

    def _is_named(self, session: Session) -> bool:
        if self.session_id is None and self.display_name is None:
            return True
        words = (self.display_name or "").lower().split()
        name = (session.display_name or "").lower()
        return session.session_id == self.session_id or (bool(words) and all(word in name for word in words))
