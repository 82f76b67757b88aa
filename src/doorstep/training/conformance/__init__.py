"""Conformance: drives the public ``tinker`` SDK call by call against any Tinker server and says what is wrong.

``checks`` holds the register and the words of a check, ``session`` what checks share, ``runner`` runs them one by one;
the other modules are the checks, one group each. Needs nothing of the server but its address, and nothing of this
project but this package, so that it also runs beside older SDKs.
"""
