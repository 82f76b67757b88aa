"""Every address that the server has wants a key, once there is one; but for those that tell nothing of anybody."""

import re
from collections.abc import Iterator

import httpx
from gateway_parts import TellingEngine, settings_for
from starlette.routing import BaseRoute, Mount

from doorstep.config import ProviderSettings
from doorstep.gateway.keys import Keys, Terms
from doorstep.server import create_app

OPEN = {"/", "/healthz", "/openapi.json"}
UNKNOWN = re.compile(r"(/runs/\{run_id\})?/v1/\{path:path\}")  # says what there is
CALL = "v1/chat/completions"


def addresses(routes: list[BaseRoute], under: str = "") -> Iterator[tuple[str, str]]:
    for route in routes:
        path = under + getattr(route, "path", "")
        if isinstance(route, Mount):
            yield from addresses(route.routes, path)
        elif path not in OPEN and not UNKNOWN.fullmatch(path):
            yield from ((method, path) for method in getattr(route, "methods", None) or {"GET", "POST"})


async def test_no_address_answers_without_a_key(tmp_path):
    Keys(tmp_path / "data").create(Terms(name="somebody"))
    settings = settings_for(tmp_path / "data", providers={"fake": ProviderSettings(base_url="fake:")})

    async def start(_):
        return TellingEngine(tmp_path / "model")

    app = create_app(settings, "http://localhost", start)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        found = list(addresses(app.router.routes))
        assert len(found) > 30
        for method, path in found:
            url = re.sub(r"\{[^}]*\}", "x", path.replace("{path:path}", CALL))
            answer = await client.request(method, f"http://localhost{url}", headers={"x-api-key": "tml-wrong"})
            assert (method, path, answer.status_code) == (method, path, 401)
