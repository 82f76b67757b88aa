"""The ``workflow.py`` that ``doorstep init`` writes: it works as it is and shows what can be changed."""

import json

from doorstep.workflows.taskset import Task


def workflow(name: str, first: Task) -> str:
    """Return the file's text for a workflow whose first record is ``first``."""
    shown = json.dumps(first.item, ensure_ascii=False)[:160]
    expected = json.dumps(first.expected, ensure_ascii=False)[:160]
    return f'''"""{name}: what goes to the model and what comes back. Everything here is optional; change what you need.

The first record, for orientation:
    input     {shown!r}
    expected  {expected!r}
"""

SYSTEM = "{name}"

# def render(item):
#     """The input as the message to the model. Keep it short: each token costs time and money."""
#     return str(item)

# def finish(value, item):
#     """Your business rules, after the model. Raise ValueError("why") to send the case to a person."""
#     return value

# def grade(value, expected):
#     """1.0 is right. Return a dict for a value per field; "exact" says whether all is right."""
#     return {{"exact": float(value == expected)}}
'''
