"""Runs a check of the cookbook's own that its package leaves out, and fails where its figures are beyond a bound.

    python theirs.py SCRIPT BOUND [argument=value …]

Both scripts print differences of log-probabilities and judge nothing. The text that one of them scores is a file on
the internet; here it is the script itself, so that the check runs without a network.
"""

import contextlib
import io
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx

script, bound, *arguments = sys.argv[1:]
text = Path(script).read_text("utf-8")
httpx.get = lambda _url: SimpleNamespace(raise_for_status=lambda: None, text=text[:3000])  # type: ignore[assignment]

sys.argv = [script, *arguments]
said = io.StringIO()
with contextlib.redirect_stdout(said):
    runpy.run_path(script, run_name="__main__")
print(said.getvalue())
squares = re.findall(r"'mse\[sample, train\]': ([^,]+),", said.getvalue())
largest = re.findall(r"^ +[\d.]+ +\d+ +\d+ +[\d.]+ +([\d.]+)$", said.getvalue(), re.MULTILINE)
figures = [float(figure) for figure in squares + largest]
if not figures or not max(figures) <= float(bound):
    sys.exit(f"log-probabilities differ: {figures}, and the bound is {bound}")
