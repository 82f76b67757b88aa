"""Doorstep, the last mile of AI: a company's own records to its own model with the traffic."""

__version__ = "0.1.0"
