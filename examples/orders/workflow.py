"""The order desk of Hafenmarkt, a wholesaler for restaurants: an e-mail becomes an order in JSON.

The model reads the e-mail; the business rules below are code, so that they are always kept.
"""

import csv
import json
import re
import sys
from datetime import date, datetime, timedelta
from functools import cache
from itertools import zip_longest
from pathlib import Path

from doorstep.workflows.inputs import load_file

HERE = Path(__file__).parent
SYSTEM = "order to json"
COLUMNS = ["sku", "qty", "unit", "day"]
MAX_TOKENS = 110
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri")
NEXT = ("next", "second")  # delivery day, for who names none or says "in two days"
NAMED_DAY = re.compile(
    r"(?i)\b(mon(day)?|tue(s|sday)?|wed(s|nesday)?|thu(rs|rsday)?|fri(day)?|montag|dienstag|mittwoch|donnerstag|freitag)\b|周[一二三四五]"
)
SAME_AGAIN = re.compile(
    r"same as|same again|the usual|repeat our|wie letztes Mal|das Übliche|nochmal dasselbe|跟上次一样|老样子|照旧"
)
QUOTED = re.compile(r"^(>|On .* wrote:$|Am .* schrieb .*:$|.*写道：$)")


def load(path: Path) -> dict:
    """An ``.eml`` file, with the sender's last order beside it where one asks for the same again."""
    item = load_file(path)
    item["from"] = re.sub(r".*<(.*)>", r"\1", item["from"])
    if SAME_AGAIN.search(item["body"]):
        item["last"] = _last_orders().get(item["from"], [])
    return item


def render(item: dict) -> str:
    """The next delivery days, the last order where it matters, and the e-mail without quoted thread and signature."""
    today = _day(item)
    parts = [f"{_weekday(today)} {today.day}: " + " ".join(f"{_weekday(day)} {day.day}" for day in working_days(today))]
    if item.get("last") and SAME_AGAIN.search(item["body"]):
        parts.append("last: " + "; ".join(f"{line['qty']} {line['unit']} {line['sku']}" for line in item["last"]))
    return "\n".join([*parts, _own_words(item["body"])])


def answer(expected: dict, item: dict) -> str:
    """What the model should have said: the booked lines, and the day in the e-mail's own terms."""
    day, ahead = date.fromisoformat(expected["day"]), working_days(_day(item))
    if re.search(rf"(?<!\d){day.day}(th|[/.号])", item["body"]):
        said: int | str = day.day
    elif day in ahead[:2] and not NAMED_DAY.search(_own_words(item["body"])):
        said = NEXT[ahead.index(day)]
    else:
        said = _weekday(day)
    return json.dumps({"lines": expected["lines"], "day": said}, ensure_ascii=False, separators=(",", ":"))


def finish(value: dict, item: dict) -> dict:
    """The business rules: successors of discontinued goods, whole cases, least quantities, days that we deliver on."""
    lines = [_booked(line) for line in value["lines"]]
    if not lines:
        raise ValueError("no order line was found")
    for day, name in zip_longest(working_days(_day(item)), NEXT):
        if value["day"] in (day.day, _weekday(day), name):
            return {"lines": lines, "day": day.isoformat()}
    raise ValueError(f"day {value['day']} is not among the next delivery days")


def grade(value: dict, expected: dict) -> dict[str, float]:
    """A share of the lines per field; the order of the lines does not matter."""
    got, wanted = _by_sku(value["lines"]), _by_sku(expected["lines"])
    skus = got.keys() | wanted.keys()
    both = got.keys() & wanted.keys()
    shares = {"sku": len(both) / len(skus)}
    for field in ("qty", "unit"):
        shares[field] = sum(got[sku][field] == wanted[sku][field] for sku in both) / len(skus)
    shares["day"] = float(value["day"] == expected["day"])
    same = sorted(map(str, value["lines"])) == sorted(map(str, expected["lines"]))
    return shares | {"exact": float(same and shares["day"] == 1.0)}


def rows(value: dict) -> list[dict]:
    """One line of the table per line of the order."""
    return [line | {"day": value["day"]} for line in value["lines"]]


def _weekday(day: date) -> str:
    return WEEKDAYS[day.weekday()]


def working_days(today: date) -> list[date]:
    """The five working days after ``today``."""
    ahead = [today + timedelta(days=step) for step in range(1, 9)]
    return [day for day in ahead if day.weekday() < 5][:5]


def _booked(line: dict) -> dict:
    sku, qty, unit = line["sku"], line["qty"], line["unit"]
    good = catalogue().get(sku)
    if good is None:
        raise ValueError(f"'{sku}' is not in the catalogue")
    if not isinstance(qty, int) or qty < 1:
        raise ValueError(f"'{qty}' is no quantity")
    if good["successor"]:
        sku, good = good["successor"], catalogue()[good["successor"]]
    if unit == "piece" and good["unit"] == "case":
        unit, qty = "case", -(-qty // int(good["case_size"]))  # opened cases are not sold
    return {"sku": sku, "qty": max(qty, int(good["least"])) if unit == good["unit"] else qty, "unit": unit}


def _own_words(body: str) -> str:
    lines = body.replace("\r", "").split("\n")
    kept = []
    for line in lines:
        if line.strip() == "--":
            break
        if line.strip() and not QUOTED.match(line.strip()):
            kept.append(line.strip())
    return "\n".join(kept)


def _by_sku(lines: list[dict]) -> dict[str, dict]:
    return {line["sku"]: line for line in lines}


def _day(item: dict) -> date:
    return datetime.fromisoformat(item["at"]).date() if item.get("at") else date.today()


@cache
def catalogue() -> dict[str, dict]:
    """The goods by sku."""
    goods: dict[str, dict] = {}
    with (HERE / "catalogue.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["sku"] in goods:
                print(f"catalogue.csv: '{row['sku']}' is there twice; the first line counts", file=sys.stderr)
            goods.setdefault(row["sku"], row)
    return goods


@cache
def _last_orders() -> dict[str, list[dict]]:
    return json.loads((HERE / "last_orders.json").read_text("utf-8"))


catalogue()  # read at once: what is wrong with it is told before the first e-mail
