"""Make the example's files: the database and the records of its analyst. Everything is invented; the same seed makes the same files.

python examples/questions/make.py
"""

import json
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
RECORDS = 1300
KINDS = {
    "ebike": ("e-bikes", "electric bikes", "the ones with a motor"),
    "cargo": ("cargo bikes", "box bikes"),
    "road": ("road bikes", "racers"),
    "city": ("city bikes", "ordinary bikes"),
    "kids": ("children's bikes", "small bikes"),
}
BRANCHES = {
    "harbour": ("at the harbour", "down at the docks"),
    "station": ("at the station", "by the trains"),
    "north": ("in the north branch", "up north"),
    "old-town": ("in the old town", "in the centre"),
}
STATES = {
    "late": ("late", "overdue", "not brought back in time"),
    "open": ("still out", "running now"),
    "paid": ("paid", "settled"),
    "cancelled": ("cancelled", "called off"),
}
NAMES = "Falcon Otter Comet Maple Juniper Rocket Daisy Pepper Scout Breeze Willow Turbo Pixel Mango Storm Hazel".split()
CUSTOMERS = "Ada Bjorn Carla Dario Edda Farid Gita Henk Inga Jonas Kira Lorenz Mona Nils Olga Pavel".split()


def main() -> None:
    rng = Random(77)
    write_database(rng)
    at, lines = datetime(2026, 2, 2, 8, 0), []
    questions = dict(ask(rng) for _ in range(RECORDS * 6))  # each question once
    for number, (question, sql) in enumerate(list(questions.items())[:RECORDS]):
        at += timedelta(hours=rng.randint(1, 5))
        lines.append(
            json.dumps(
                {"id": f"q{number + 1:04d}", "at": at.isoformat(), "input": question, "expected": sql},
                ensure_ascii=False,
            )
        )
    (HERE / "records.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def write_database(rng: Random) -> None:
    text = ["create table bikes(id integer primary key, name text, kind text, branch text, price integer);"]
    text.append(
        "create table rentals(id integer primary key, customer text, status text, hours integer, total integer, day integer, bikes_id integer references bikes(id));"
    )
    text += [
        f"insert into bikes values({number},'{rng.choice(NAMES)}{number}','{rng.choice(list(KINDS))}','{rng.choice(list(BRANCHES))}',{rng.randint(4, 30)});"
        for number in range(1, 81)
    ]
    for number in range(1, 601):
        hours = rng.randint(1, 72)
        text.append(
            f"insert into rentals values({number},'{rng.choice(CUSTOMERS)}','{rng.choice(list(STATES))}',{hours},{hours * rng.randint(4, 30)},{rng.randint(1, 28)},{rng.randint(1, 80)});"
        )
    (HERE / "shop.sql").write_text("\n".join(text) + "\n", "utf-8")


def ask(rng: Random) -> tuple[str, str]:
    """Return a question in the words of the shop, and the analyst's query."""
    return rng.choice((count_rentals, turnover, average, bikes, per_group, top, by_kind))(rng)


def said(rng: Random, words: dict[str, tuple[str, ...]]) -> tuple[str, str]:
    key = rng.choice(list(words))
    return key, rng.choice(words[key])


def condition(rng: Random) -> tuple[str, str]:
    kind = rng.randrange(4)
    if kind == 0:
        status, words = said(rng, STATES)
        return f" where status='{status}'", f" that are {words}"
    if kind == 1:
        customer = rng.choice(CUSTOMERS)
        return f" where customer='{customer}'", f" of {customer}"
    if kind == 2:
        hours = rng.choice((2, 4, 8, 12, 24, 48))
        return (
            (f" where hours>{hours}", f" longer than {hours} hours")
            if rng.random() < 0.5
            else (f" where hours<{hours}", f" shorter than {hours} hours")
        )
    return "", ""


def count_rentals(rng: Random) -> tuple[str, str]:
    where, words = condition(rng)
    return rng.choice(
        (f"how many bookings{words}?", f"number of bookings{words}", f"bookings{words}, just the number")
    ), f"select count(*) from rentals{where}"


def turnover(rng: Random) -> tuple[str, str]:
    where, words = condition(rng)
    return rng.choice(
        (f"turnover from bookings{words}?", f"what did we take with bookings{words}", f"revenue, bookings{words}")
    ), f"select sum(total) from rentals{where}"


def average(rng: Random) -> tuple[str, str]:
    where, words = condition(rng)
    column, name = rng.choice(
        (
            ("hours", "how long on average are bookings"),
            ("total", "what is the average ticket of bookings"),
            ("hours", "mean duration of bookings"),
        )
    )
    return f"{name}{words}?", f"select avg({column}) from rentals{where}"


def bikes(rng: Random) -> tuple[str, str]:
    kind, kind_words = said(rng, KINDS)
    branch, branch_words = said(rng, BRANCHES)
    form = rng.randrange(3)
    if form == 0:
        return f"how many {kind_words} do we have?", f"select count(*) from bikes where kind='{kind}'"
    if form == 1:
        return f"which bikes stand {branch_words}?", f"select name from bikes where branch='{branch}'"
    price = rng.choice((8, 10, 15, 20, 25))
    if rng.random() < 0.5:
        return f"bikes dearer than {price} an hour", f"select name from bikes where price>{price}"
    return f"bikes cheaper than {price} an hour", f"select name from bikes where price<{price}"


def per_group(rng: Random) -> tuple[str, str]:
    column, words = rng.choice((("customer", "each customer"), ("status", "each state")))
    function, name = rng.choice(
        (("sum(total)", "turnover"), ("avg(hours)", "average duration"), ("sum(hours)", "hours"))
    )
    where, said_where = condition(rng) if rng.random() < 0.7 else ("", "")
    of = f" from bookings{said_where}" if said_where else ""
    asked = rng.choice((f"{name}{of} for {words}", f"{name}{of} split by {words.removeprefix('each ')}"))
    return asked, f"select {column},{function} from rentals{where} group by {column}"


def top(rng: Random) -> tuple[str, str]:
    n = rng.randint(2, 9)
    column, word = rng.choice((("total", "biggest"), ("hours", "longest")))
    where, said_where = condition(rng) if rng.random() < 0.7 else ("", "")
    asked = rng.choice(
        (f"customers of the {n} {word} bookings{said_where}", f"who made our {n} {word} bookings{said_where}?")
    )
    return asked, f"select customer from rentals{where} order by {column} desc limit {n}"


def by_kind(rng: Random) -> tuple[str, str]:
    words = KINDS if rng.random() < 0.5 else BRANCHES
    column = "kind" if words is KINDS else "branch"
    key, name = said(rng, words)
    source = f"from rentals join bikes on rentals.bikes_id=bikes.id where bikes.{column}='{key}'"
    thing = f"of {name}" if words is KINDS else f"of bikes {name}"
    form = rng.randrange(3)
    if form == 0:
        return rng.choice(
            (f"how many bookings {thing}?", f"bookings {thing}, just the number")
        ), f"select count(*) {source}"
    if form == 1:
        return rng.choice(
            (f"turnover {thing}", f"what did we take with bookings {thing}")
        ), f"select sum(rentals.total) {source}"
    return f"average duration {thing}", f"select avg(rentals.hours) {source}"


if __name__ == "__main__":
    main()
