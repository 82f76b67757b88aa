"""What the page on keys and budgets says of settings and addresses is so."""

import re

from pages import ROOT, blocks, prose

from doorstep import config
from doorstep.gateway.admin import Administration
from doorstep.gateway.keys import Keys
from doorstep.store import Store

PAGE = ROOT / "docs" / "how-to" / "keys-and-budgets.md"


def test_its_toml_is_a_file_of_settings_and_has_all_of_a_workflow(tmp_path):
    (text,) = blocks(PAGE, "toml")
    file = tmp_path / "doorstep.toml"
    file.write_text(text, "utf-8")
    workflow = config.load(file).workflows["invoices"]
    assert set(re.findall(r"^(\w+) = ", text, re.MULTILINE)) == {*workflow.__struct_fields__, "unknown_price"}


def test_it_has_every_address_of_the_administration_and_no_other(tmp_path):
    with Store.open(tmp_path / "doorstep.db") as store:
        routes = Administration(Keys(tmp_path), tmp_path, store).routes()
    served = {f"{method} {route.path}" for route in routes for method in route.methods - {"HEAD"}}
    assert set(re.findall(r"`([A-Z]+ /\S+)`", prose(PAGE))) == served
