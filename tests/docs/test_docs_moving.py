"""What the page on moving in says of other programs' settings is what is read."""

import re

from pages import ROOT, prose, table_rows

from doorstep.gateway.migration import litellm_places, tensorzero_rows

PAGE = ROOT / "docs" / "how-to" / "move-to-doorstep.md"


def test_each_provider_of_litellm_that_is_taken_over_is_named():
    (row,) = [row for row in table_rows(PAGE.read_text("utf-8")) if "litellm_params.model" in row[0]]
    said = row[1].lower().replace(" ", "").replace(".", "")
    taken = [*litellm_places.PREFIXES, *litellm_places.SERVICES, *litellm_places.LIBRARY]
    names = {prefix: re.sub(r"_ai$|_chat$", "", prefix).replace("_", "") for prefix in taken}
    assert [prefix for prefix, name in names.items() if name not in said] == []


def test_the_tags_that_name_a_customer_are_named():
    assert all(f"`{tag}`" in prose(PAGE) for tag in tensorzero_rows.CUSTOMER_TAGS)
