"""The task families that the base learns general skills from; every instance is freshly invented.

Each family is a function of a ``random.Random`` that returns ``(system, user, answer)``. Skills: copy from the
prompt, look up in a list, normalise numbers, units and dates, obey a change of mind, follow a format, write JSON
and small SQL, sort into labels that are only named in the prompt. None of the example companies' content is here.
"""

import json
from random import Random

from words import CITIES, DAYS, FAMILIES, GOODS, MONTHS, NOISE, NUMBERS, PEOPLE, SYLLABLES, UNITS

Instance = tuple[str, str, str]


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def typo(rng: Random, word: str, chance: float = 0.12) -> str:
    """Drop, double or swap a letter now and then."""
    if len(word) < 4 or rng.random() > chance:
        return word
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:at] + word[at + 1 :]
    if kind == 1:
        return word[:at] + word[at] + word[at:]
    return word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]


def invented(rng: Random, least: int = 2, most: int = 3) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(least, most)))


def number(rng: Random, value: int, language: int) -> str:
    if value in NUMBERS and rng.random() < 0.2:
        return NUMBERS[value][language]
    return str(value)


def calendar(rng: Random) -> tuple[str, list[tuple[int, int]]]:
    """Return ``Thu 5: Fri 6 Mon 9 …``, the next five working days, and them as (weekday, day of month)."""
    weekday, day, last = rng.randrange(5), rng.randint(1, 31), rng.choice((28, 30, 31))
    day = min(day, last)
    head, ahead, at = f"{DAYS[weekday][0]} {day}:", [], weekday
    while len(ahead) < 5:
        at, day = (at + 1) % 7, day % last + 1
        if at < 5:
            ahead.append((at, day))
    return head + "".join(f" {DAYS[w][0]} {d}" for w, d in ahead), ahead


def date_phrase(rng: Random, ahead: list[tuple[int, int]], language: int) -> tuple[str, int]:
    """Return how a person names a day, and the day of the month; no phrase means the first day ahead."""
    kind = rng.random()
    if kind < 0.25:
        return "", ahead[0][1]
    if kind < 0.4:
        return (rng.choice(("for tomorrow", "tomorrow please")), rng.choice(("bis morgen", "für morgen")), "明天要")[language], ahead[0][1]
    weekday, day = rng.choice(ahead)
    if kind < 0.75:
        short, long, german, chinese = DAYS[weekday]
        return (
            rng.choice((f"for {long}", f"by {short}", f"on {long} please", f"deliver {long.lower()}", f"need it {short}")),
            rng.choice((f"bis {german}", f"am {german}", f"für {german[:2]}.")),
            rng.choice((f"{chinese}送", f"{chinese}要")),
        )[language], day
    return (
        rng.choice((f"by the {day}th", f"on the {day}.", f"for the {day}th", f"delivery {day}.")),
        rng.choice((f"bis zum {day}.", f"am {day}.")),
        f"{day}号送",
    )[language], day


def order_line(rng: Random, goods: tuple[str, str, str], qty: int, unit: str, language: int) -> str:
    spelled = rng.choice(UNITS[unit][language])
    name = goods[language]
    if language == 0:
        name = typo(rng, name.replace("-", " "))
    elif language == 1:
        name = typo(rng, name) if rng.random() < 0.8 else name.lower()
    count = number(rng, qty, language)
    if language == 2:
        return rng.choice((f"{name}{count}{spelled}", f"{count}{spelled}{name}", f"{name} {count}{spelled}"))
    gap = f" {spelled}" if spelled else ""
    of = " of" if language == 0 and spelled and rng.random() < 0.4 else ""
    forms = [f"{count}{gap}{of} {name}", f"{name} x{qty}{gap}", f"{name}: {count}{gap}", f"{qty}x{gap} {name}", f"- {name}, {count}{gap}"]
    return rng.choice(forms)


def change(rng: Random, line: dict, goods: tuple[str, str, str], language: int) -> tuple[str, bool]:
    """Change one line afterwards: another number (the line is altered) or not at all (return True)."""
    name = goods[language].replace("-", " ")
    if rng.random() < 0.3:
        return (
            rng.choice((f"no {name} after all", f"forget the {name}", f"without the {name} please")),
            rng.choice((f"{name} doch nicht", f"ohne {name}")),
            f"{name}不要了",
        )[language], True
    new = rng.choice([value for value in range(1, 13) if value != line["qty"]])
    line["qty"] = new
    return (
        rng.choice((f"sorry, make that {new} {name}", f"actually {new} {name}", f"{name}: {new} instead", f"no wait, {new} {name}")),
        rng.choice((f"doch lieber {new} {name}", f"{name} bitte auf {new} ändern", f"ach nein, {new} {name}")),
        rng.choice((f"{name}改成{new}", f"不对，{name}要{new}")),
    )[language], False


def closing(rng: Random) -> list[str]:
    """Return what stands below an order: a name, a signature, the quoted e-mail before, whose lines are no order."""
    below = [rng.choice(("", "", "Thanks", "LG", "谢谢", rng.choice(PEOPLE)))]
    if rng.random() < 0.12:
        below += ["--", f"{rng.choice(PEOPLE)} {rng.choice(FAMILIES)}, {rng.choice(CITIES)}", f"Tel {rng.randint(1000, 99999)}"]
    if rng.random() < 0.12:
        goods, language = rng.choice(GOODS), rng.randrange(3)
        below.append(f"> {order_line(rng, goods, rng.randint(1, 30), rng.choice(list(UNITS)), language)}")
    return below


def orders(rng: Random) -> Instance:
    """An e-mail becomes an order; sometimes a catalogue in the prompt says how things are called."""
    head, ahead = calendar(rng)
    language = rng.choices((0, 1, 2), (6, 3, 2))[0]
    picked = rng.sample(GOODS, rng.choices((1, 2, 3, 4), (3, 4, 3, 1))[0])
    # Goods that nobody has heard of: they are called what the e-mail calls them.
    picked = [[invented(rng)] * 3 if rng.random() < 0.12 else goods for goods in picked]
    codes, shown = {}, ""
    if rng.random() < 0.3:
        listed = [*picked, *rng.sample(GOODS, 2)]
        codes = {goods[0]: invented(rng) + (f"-{rng.randint(1, 9)}" if rng.random() < 0.5 else "") for goods in listed}
        order = list(codes.items())
        rng.shuffle(order)
        shown = "\n".join(f"{code} = {name}" for name, code in order) + "\n"
    lines, said = [], []
    for goods in picked:
        qty, unit = rng.choice((1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24, 30)), rng.choices(list(UNITS), (4, 3, 2, 2))[0]
        lines.append({"sku": codes.get(goods[0], goods[0]), "qty": qty, "unit": unit})
        said.append(order_line(rng, goods, qty, unit, language))
    last = ""
    if rng.random() < 0.15:
        before = [{"sku": rng.choice(GOODS)[0], "qty": rng.randint(1, 12), "unit": rng.choice(list(UNITS))} for _ in range(rng.randint(1, 3))]
        last = "last: " + "; ".join(f"{line['qty']} {line['unit']} {line['sku']}" for line in before) + "\n"
        phrase = (rng.choice(("same as last time", "the same again", "the usual")), rng.choice(("wie letztes Mal", "wie immer")), rng.choice(("跟上次一样", "老样子")))[language]
        keep = rng.choice((0, 1))
        lines, said = before + lines[:keep], [phrase, *(f"+ {line}" for line in said[:keep])]
        picked = picked[:keep]
    tail = []
    if picked and not last and rng.random() < 0.25:
        at = rng.randrange(len(picked))
        text, dropped = change(rng, lines[at], picked[at], language)
        tail.append(text)
        if dropped and len(lines) > 1:
            lines.pop(at)
        elif dropped:
            tail.pop()
    when, day = date_phrase(rng, ahead, language)
    tail.append(when)
    if rng.random() < 0.4:
        tail.append(rng.choice(NOISE).format(n=rng.randint(10, 9999)))
    rng.shuffle(tail)
    opening = (
        rng.choice(("Hi,", "Hello", "Dear team,", "please send", "we need", "Order:", "Hi, can we get", "")),
        rng.choice(("Hallo,", "Guten Tag,", "bitte", "wir brauchen", "Bestellung:", "Moin,", "")),
        rng.choice(("你好，", "请发", "我们要", "订单：", "")),
    )[language]
    joined = rng.choice(("\n", ", ", "\n", " and " if language == 0 else " und " if language == 1 else "，")).join(said)
    body = "\n".join(part for part in (opening, joined, *tail, *closing(rng)) if part)
    return "order to json", f"{shown}{head}\n{last}{body}", compact({"lines": lines, "day": day})


def dates(rng: Random) -> Instance:
    """Name a day from a calendar."""
    head, ahead = calendar(rng)
    text, day = "", 0
    language = rng.randrange(3)
    while not text:
        text, day = date_phrase(rng, ahead, language)
    return "day of month", f"{head}\n{text}", str(day)


TEXT = ["name", "city", "status", "kind", "colour", "grade", "region", "title", "owner", "size"]
NUMERIC = ["price", "total", "amount", "weight", "score", "age", "hours", "stock", "cost", "points"]
AGGREGATES = [("avg", ("average", "mean")), ("sum", ("total", "sum of")), ("max", ("highest", "largest", "biggest")), ("min", ("lowest", "smallest"))]


def _value(rng: Random, column: str) -> str:
    if column == "city":
        return rng.choice(CITIES)
    if column in ("name", "owner"):
        return rng.choice(PEOPLE)
    return invented(rng)


def sql(rng: Random) -> Instance:
    """A question over a schema in the prompt becomes SQL."""
    tables = rng.sample([*(goods[0].replace("-", "_") for goods in GOODS), *(invented(rng) + "s" for _ in range(20))], 2)
    columns = {name: [*rng.sample(TEXT, 2), *rng.sample(NUMERIC, 2), "day"] for name in tables}
    other, table = tables
    joined = rng.random() < 0.3
    if joined:
        columns[table].append(f"{other}_id")
    schema = "\n".join(f"{name}({','.join(['id', *columns[name]])})" for name in tables)
    text, numeric = rng.choice(columns[table][:2]), rng.choice(columns[table][2:4])
    where, said = _condition(rng, table, other, columns, joined)
    source = f"{table}{f' join {other} on {table}.{other}_id={other}.id' if joined else ''}{where}"
    plain = table.replace("_", " ")
    column = f"{table}.{numeric}" if joined else numeric
    form = rng.randrange(6)
    if form == 0:
        asked = rng.choice((f"how many {plain} are there{said}?", f"number of {plain}{said}", f"count the {plain}{said}"))
        return "sql", f"{schema}\n{asked}", f"select count(*) from {source}"
    if form in (1, 2):
        function, words = rng.choice(AGGREGATES)
        asked = rng.choice((f"what is the {rng.choice(words)} {numeric} of {plain}{said}?", f"{rng.choice(words)} {numeric}, {plain}{said}"))
        return "sql", f"{schema}\n{asked}", f"select {function}({column}) from {source}"
    if form == 3 and not joined:
        function, words = rng.choice(AGGREGATES[:2])
        asked = rng.choice((f"{rng.choice(words)} {numeric} of {plain} per {text}{said}", f"{rng.choice(words)} {numeric} by {text}{said}, {plain}"))
        return "sql", f"{schema}\n{asked}", f"select {text},{function}({numeric}) from {source} group by {text}"
    shown = f"{table}.{text}" if joined else text
    if form == 4:
        top, n = rng.random() < 0.6, rng.randint(1, 9)
        word = rng.choice(("highest", "largest", "most")) if top else rng.choice(("lowest", "smallest"))
        asked = rng.choice((f"the {n} {plain} with the {word} {numeric}{said}, show {text}", f"{text} of the {n} {word} {numeric} {plain}{said}"))
        return "sql", f"{schema}\n{asked}", f"select {shown} from {source} order by {column}{' desc' if top else ''} limit {n}"
    asked = rng.choice((f"list the {text} of {plain}{said}", f"which {text} do {plain}{said} have?", f"show {text} of all {plain}{said}"))
    return "sql", f"{schema}\n{asked}", f"select {shown} from {source}"


def _condition(rng: Random, table: str, other: str, columns: dict[str, list[str]], joined: bool) -> tuple[str, str]:
    if joined:
        column = rng.choice(columns[other][:2])
        value = _value(rng, column)
        return f" where {other}.{column}='{value}'", rng.choice((f" with {other} {column} {value}", f" whose {other} {column} is {value}"))
    kind = rng.random()
    if kind < 0.25:
        return "", ""
    if kind < 0.6:
        column = rng.choice(columns[table][:2])
        value = _value(rng, column)
        forms = [f" with {column} {value}", f" where {column} is {value}"]
        if column == "city":
            forms.append(f" in {value}")
        return f" where {column}='{value}'", rng.choice(forms)
    column, value = rng.choice(columns[table][2:4]), rng.randint(1, 500)
    sign, words = rng.choice(((">", ("above", "over", "more than")), ("<", ("below", "under", "less than"))))
    return f" where {column}{sign}{value}", f" with {column} {rng.choice(words)} {value}"


LABELS = """billing delivery refund account bug order return price invoice login password damage late missing question praise
complaint support sales technical shipping warranty cancel address payment feedback""".split()
REASONS = {
    "billing": ["charged twice", "wrong amount on my bill"], "delivery": ["where is the driver", "when will it come"], "refund": ["I want my money back", "please refund"],
    "account": ["cannot open my account", "change my profile"], "bug": ["the app crashes", "an error shows up"], "order": ["I want to order more", "add to my order"],
    "return": ["I want to send it back", "how do I return this"], "price": ["how much is it", "is there a discount"], "invoice": ["I need the invoice again", "no invoice came"],
    "login": ["I cannot log in", "sign in fails"], "password": ["forgot my password", "reset the password"], "damage": ["it came broken", "the box is crushed"],
    "late": ["it is two days late", "still not here"], "missing": ["a part is missing", "one item was not inside"], "question": ["I have a question", "can you explain"],
    "praise": ["great work", "very happy"], "complaint": ["this is not acceptable", "very unhappy"], "support": ["I need help", "please assist"],
    "sales": ["I want a quote", "are you selling"], "technical": ["it does not start", "the light blinks red"], "shipping": ["which carrier", "tracking number please"],
    "warranty": ["is it under warranty", "the guarantee"], "cancel": ["stop my plan", "cancel it"], "address": ["we moved", "new address"],
    "payment": ["card was declined", "pay by transfer"], "feedback": ["a suggestion", "some ideas for you"],
}


def tickets(rng: Random) -> Instance:
    """Sort a message into labels that the prompt names, and pull out an id."""
    labels = rng.sample(LABELS, rng.randint(3, 5))
    label = rng.choice(labels)
    ident = f"{rng.choice('ABCDEFGHKLMNPRSTX')}{rng.randint(10, 99999)}"
    parts = [rng.choice(REASONS[label]), rng.choice(("", f"ref {ident}", f"my number is {ident}", f"({ident})"))]
    found = ident if ident in parts[1] else None
    if rng.random() < 0.4:
        parts.append(rng.choice(NOISE).format(n=rng.randint(10, 9999)))
    rng.shuffle(parts)
    urgent = rng.random() < 0.3
    if urgent:
        parts.append(rng.choice(("asap!", "this is urgent", "today please!", "dringend")))
    text = ". ".join(typo(rng, part, 0.05) for part in parts if part)
    return "label: " + "|".join(labels), text, compact({"label": label, "id": found, "urgent": urgent})


def fields(rng: Random) -> Instance:
    """Pull named facts out of a text, in the order in which they are asked for."""
    person, family, city = rng.choice(PEOPLE), rng.choice(FAMILIES), rng.choice(CITIES)
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(2019, 2027)
    amount = rng.randint(5, 9999)
    facts = {
        "name": (f"{person} {family}", (f"{person} {family} here", f"this is {person} {family}", f"name: {person} {family}", f"ich bin {person} {family}")),
        "city": (city, (f"from {city}", f"in {city}", f"city: {city}", f"aus {city}")),
        "date": (f"{year}-{month:02d}-{day:02d}", (f"on {day} {MONTHS[month - 1]} {year}", f"{MONTHS[month - 1]} {day}, {year}", f"am {day}.{month}.{year}", f"{year}年{month}月{day}日")),
        "amount": (amount, (f"{amount} euros", f"total {amount}", f"costs {amount}", f"共{amount}元")),
        "mail": (f"{person.lower()}@{invented(rng)}.com", ()),
    }
    facts["mail"] = (facts["mail"][0], (f"mail {facts['mail'][0]}", f"write to {facts['mail'][0]}"))
    asked = rng.sample(list(facts), rng.randint(2, 4))
    present = [key for key in facts if (key in asked and rng.random() < 0.9) or rng.random() < 0.3]
    said = [rng.choice(facts[key][1]) for key in present]
    rng.shuffle(said)
    answer = {key: facts[key][0] if key in present else None for key in asked}
    return "fields: " + ",".join(asked), rng.choice((", ", ". ", "\n")).join(said), compact(answer)


def lookup(rng: Random) -> Instance:
    """Find a name in a list and give what stands beside it."""
    entries = [(rng.choice(GOODS)[0], invented(rng) + str(rng.randint(1, 99))) for _ in range(rng.randint(3, 7))]
    entries = list(dict(entries).items())
    name, code = rng.choice(entries)
    listed = "\n".join(f"{key} = {value}" for key, value in entries)
    return "look up", f"{listed}\n? {typo(rng, name, 0.4)}", code


def spelling(rng: Random) -> Instance:
    """Mend typing errors."""
    words = [rng.choice((rng.choice(GOODS)[rng.randrange(3)], rng.choice(PEOPLE), rng.choice(CITIES), rng.choice(MONTHS))) for _ in range(rng.randint(2, 5))]
    return "fix spelling", " ".join(typo(rng, word, 0.6) for word in words), " ".join(words)


def translate(rng: Random) -> Instance:
    """Give the English name of things."""
    goods = rng.sample(GOODS, rng.randint(1, 4))
    language = rng.choice((1, 2))
    return "to english", ", ".join(typo(rng, item[language], 0.1) for item in goods), ", ".join(item[0] for item in goods)


FAMILIES_BY_WEIGHT = {orders: 40, sql: 22, tickets: 9, fields: 9, dates: 6, lookup: 5, spelling: 4, translate: 5}


def instance(seed: int) -> tuple[str, Instance]:
    """Return the instance of a number: its family's name, and system, user and answer."""
    rng = Random(seed)
    family = rng.choices(list(FAMILIES_BY_WEIGHT), list(FAMILIES_BY_WEIGHT.values()))[0]
    return family.__name__, family(rng)
