"""Fixtures for tests that are to hold on every database."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from postgres_server import DATABASES, Server, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server for the whole session."""
    with postgres_server() as server:
        yield server


@pytest.fixture(params=DATABASES)
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Return what gives the address of an empty database, of each kind."""
    if request.param == "postgresql":
        server: Server = request.getfixturevalue("postgres")
        return server.database
    names = count()
    return lambda: str(tmp_path / f"record_{next(names)}.db")


@pytest.fixture
def where(new_database: Callable[[], str]) -> str:
    """The address of an empty database."""
    return new_database()
