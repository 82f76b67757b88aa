"""What the page on feedback says can be sent so."""

import ast
import re
from typing import get_args

from pages import ROOT, blocks, table_rows

from doorstep.gateway import opinions
from doorstep.gateway.opinions import Opinion

PAGE = ROOT / "docs" / "how-to" / "feedback.md"


def test_every_example_is_feedback_and_each_kind_has_one():
    (text,) = blocks(PAGE, "python")
    sent = [ast.literal_eval(body) for body in re.findall(r"json=(\{.*\})\)", text.replace("…", "x"))]
    read = [opinions.read(body) for body in sent]
    assert {opinion.kind for opinion in read} == {*get_args(opinions.Kind)}


def test_every_field_stands_in_the_table_and_no_other():
    rows = table_rows(PAGE.read_text("utf-8").partition("## What becomes of it")[0])
    named = {name for row in rows[1:] for name in re.findall(r"`(\w+)`", row[0])}
    assert named == {*Opinion.__struct_fields__}
