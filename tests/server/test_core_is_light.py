"""What ``pip install doorstep`` brings, and what importing it loads."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
MOST = 25


def needed_by(lines, found):
    """Add the names of all packages that these requirements bring here, without extras."""
    for line in lines:
        requirement = Requirement(line)
        name = re.sub(r"[-_.]+", "-", requirement.name.lower())
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name not in found:
            found.add(name)
            needed_by(requires(name) or [], found)
    return found


def test_the_core_brings_few_packages_and_no_torch():
    found = needed_by(tomllib.loads(PROJECT.read_text("utf-8"))["project"]["dependencies"], set())
    assert "torch" not in found
    assert len(found) <= MOST, sorted(found)


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("doorstep", ("sqlalchemy", "starlette", "torch")),
        ("doorstep.server", ("torch", "httpx", "transformers", "genai_prices", "openai", "jinja2")),
        ("doorstep.gateway.compactor", ("torch", "starlette", "uvicorn", "genai_prices")),
    ],
)
def test_a_module_loads_only_what_it_needs(module, absent):
    code = f"import sys, {module}; print(*sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
