"""What the pages on the gateway show does what it says: code runs, settings are settings, requests are answered."""

import base64
import re
import shlex
import subprocess
import sys
import tomllib

import httpx
import pytest
from gateway_parts import TellingEngine, serving, settings_for
from pages import PAGES, ROOT, blocks

from doorstep import config
from doorstep.config import ProviderSettings

ADDRESS = "http://127.0.0.1:8000"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
INSTALLED = ("openai", "anthropic")  # of the clients that the pages show


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shown")
    settings = settings_for(folder / "data", providers={"fake": ProviderSettings(base_url="fake:")})
    with serving(settings, TellingEngine(folder / "model")) as url:
        yield url


def _shown():
    """Yield the code for the clients that are installed here."""
    for page in PAGES:
        for number, text in enumerate(blocks(page, "python"), 1):
            names = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
            if ADDRESS in text and names and set(names) <= set(INSTALLED):
                yield pytest.param(text, id=f"{page.name} {number}")


@pytest.mark.parametrize("text", list(_shown()))
def test_code_for_a_client_runs(address, tmp_path, text):
    (tmp_path / "photo.png").write_bytes(base64.b64decode(PIXEL))
    code = text.replace(ADDRESS, address)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_code_that_breaks_off_says_so(address, tmp_path):
    (text,) = blocks(ROOT / "docs" / "how-to" / "survive-a-bad-day.md", "python")
    code = text.replace(ADDRESS, address)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"hell?o? ?t?\w*\nbroken off: .+\n", said), said


def _tomls():
    """Return our settings: a block of another program's file says first whose it is."""
    texts = [(page, text) for page in PAGES for text in blocks(page, "toml") if not text.startswith("# ~/")]
    return [pytest.param(text, id=f"{page.name} {number}") for number, (page, text) in enumerate(texts)]


@pytest.mark.parametrize("text", _tomls())
def test_settings_of_a_page_are_settings(tmp_path, text):
    file = tmp_path / "doorstep.toml"
    file.write_text(text, "utf-8")
    assert config.load(file) != config.Settings()


def _curls():
    texts = [(page, text) for page in PAGES for text in blocks(page, "sh")]
    lines = [(page, line) for page, text in texts for line in text.splitlines() if line.startswith("curl ")]
    return [pytest.param(line, id=page.name) for page, line in lines]


@pytest.mark.parametrize("line", _curls())
def test_a_request_of_a_page_is_answered(address, line):
    words = iter(shlex.split(line.replace(ADDRESS, address))[1:])
    url, headers, body = next(words), {}, b""
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        else:
            assert word == "-d"
            body = next(words).encode()
    answer = httpx.post(re.sub("/google/gemini[^:]+", "/fake/echo", url), headers=headers, content=body)
    assert answer.status_code == 200, answer.text


def test_extras_that_the_pages_name_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {extra for page in PAGES for extra in re.findall(r"doorstep\[(\w+)\]", page.read_text("utf-8"))}
    assert named <= set(project["optional-dependencies"])
