"""The command line: each command a thin caller of the parts below."""

from doorstep.cli.app import main

__all__ = ["main"]
