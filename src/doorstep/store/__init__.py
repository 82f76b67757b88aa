"""The append-only record: facts go in through ``Store.add``, everything else is a view of them."""

from doorstep.store.store import Store

__all__ = ["Store"]
