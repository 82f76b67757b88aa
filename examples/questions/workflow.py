"""Questions over the database of Radwerk, a bicycle rental: a question becomes SQL, graded by running it.

The database is ``shop.sql``; it is built in memory and only ever read.
"""

import re
import sqlite3
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
SYSTEM = "sql"
COLUMNS = ["answer", "sql"]
MAX_TOKENS = 60
SCHEMA = "bikes(id,name,kind,branch,price)\nrentals(id,customer,status,hours,total,day,bikes_id)"
STEPS = 200_000  # of SQLite's virtual machine: far above any honest question on this database


def render(question: str) -> str:
    """The two tables, and the question."""
    return f"{SCHEMA}\n{question}"


def finish(sql: str, _question: str) -> str:
    """Only a query that runs is an answer."""
    if not re.match(r"(?i)select\b", sql):
        raise ValueError("the answer is no SELECT")
    _run(sql)
    return sql


def grade(sql: str, expected: str) -> dict[str, float]:
    """Right is what returns the same rows as the query of the analyst; the order counts where she ordered."""
    got, wanted = _run(sql), _run(expected)
    if "order by" not in expected.lower():
        got, wanted = sorted(got, key=repr), sorted(wanted, key=repr)
    return {
        "runs": 1.0,
        "columns": float([len(row) for row in got[:1]] == [len(row) for row in wanted[:1]]),
        "exact": float(got == wanted),
    }


def rows(sql: str) -> list[dict]:
    """The result beside the query."""
    found = _run(sql)
    shown = "; ".join(", ".join(str(value) for value in row) for row in found[:20])
    return [{"answer": shown or "nothing", "sql": sql}]


def _run(sql: str) -> list[tuple]:
    left = [STEPS // 1000]

    def too_long() -> int:
        left[0] -= 1
        return int(left[0] < 0)

    database = _database()
    database.set_progress_handler(too_long, 1000)
    try:
        return [
            tuple(round(value, 6) if isinstance(value, float) else value for value in row)
            for row in database.execute(sql).fetchmany(500)
        ]
    except sqlite3.Error as error:
        raise ValueError(f"the query does not run: {error}") from None


@cache
def _database() -> sqlite3.Connection:
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.executescript((HERE / "shop.sql").read_text("utf-8"))
    database.execute("pragma query_only=on")
    return database
