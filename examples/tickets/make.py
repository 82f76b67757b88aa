"""Make the example's records: messages of tenants and what the office did. Everything is invented; the same seed makes the same file.

    python examples/tickets/make.py
"""

import json
from datetime import datetime, timedelta
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
RECORDS = 700
TROUBLE = {
    "plumber": ("the tap drips", "no hot water", "the toilet will not flush", "water under the sink", "der Abfluss ist verstopft", "the shower is ice cold", "radiator leaks", "Wasser tropft von der Decke"),
    "electrician": ("the hall light is dead", "no power in the kitchen", "the socket sparks", "der Strom ist weg", "the doorbell is silent", "the fuse keeps jumping", "oven does not heat"),
    "locksmith": ("my key broke off", "locked myself out", "the door will not shut", "Schlüssel verloren", "the letter box is jammed", "the gate lock is stuck"),
    "cleaning": ("the stairs are filthy", "rubbish in the yard", "broken glass at the entrance", "das Treppenhaus ist schmutzig", "the lift smells", "snow on the path"),
    "office": ("a question about my rent", "I want to move out in June", "please send the contract", "Frage zur Nebenkostenabrechnung", "may I keep a dog?", "my new bank details"),
}
URGENT = ("right now please", "we have a baby", "it is getting worse", "bitte sofort", "cannot wait")
CALM = ("when you have time", "no rush", "next week is fine", "eilt nicht", "")
FLATS = ("flat {n}", "apartment {n}", "I live in {n}", "Wohnung {n}", "no. {n}", "({n})")
SMALL = ("Hello,", "Hi", "Guten Tag", "Good evening,", "")
NAMES = ("Mrs Adler", "J. Okoye", "Familie Brandt", "Tim", "Yuki", "R. Santos", "")


def main() -> None:
    rng, at, lines = Random(5), datetime(2026, 3, 1, 8, 0), []
    for number in range(RECORDS):
        at += timedelta(hours=rng.randint(1, 9))
        message, expected = ticket(rng)
        lines.append(json.dumps({"id": f"t{number + 1:04d}", "at": at.isoformat(), "input": message, "expected": expected}, ensure_ascii=False))
    (HERE / "records.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def ticket(rng: Random) -> tuple[str, dict]:
    team = rng.choice(list(TROUBLE))
    flat = f"{rng.choice('ABCD')}{rng.randint(1, 48)}" if rng.random() < 0.85 else None
    urgent = rng.random() < 0.35
    parts = [rng.choice(TROUBLE[team]), rng.choice(URGENT if urgent else CALM)]
    if flat:
        parts.append(rng.choice(FLATS).format(n=flat))
    rng.shuffle(parts)
    text = rng.choice((". ", ", ", "\n")).join(part for part in parts if part)
    message = "\n".join(part for part in (rng.choice(SMALL), text, rng.choice(NAMES)) if part)
    return message, {"team": team, "flat": flat, "urgent": urgent}


if __name__ == "__main__":
    main()
