"""One improvement, run to its end without a stop, that many tests look at."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from company import BUDGET, WORKFLOW, Company, sentences


class Improved(NamedTuple):
    """A company after its first improvement, and what the commands said."""

    company: Company
    init: dict[str, Any]
    outcome: dict[str, Any]
    said: str

    def copy(self, folder: Path) -> Company:
        """Return a company of the same past, for a test that changes it."""
        shutil.copytree(self.company.folder, folder)
        return Company(folder)


@pytest.fixture(scope="session")
def improved(tmp_path_factory) -> Improved:
    company = Company(tmp_path_factory.mktemp("company"))
    unbooked = {"id": "unbooked", "input": "send 20 crates of limes please"}
    init = company.found([*sentences(), unbooked])
    ended = company.doorstep("improve", WORKFLOW, *BUDGET, "--json")
    return Improved(company, init, ended.json, ended.err)
