"""Whom to ask for a call, with which key, and again after a failure: policy without I/O, by an injected clock.

A call goes ``traffic.begin(plan, …)``, then ``next()`` until somebody has begun to answer or it says to give up. What
an upstream's failure means is in ``failures``, which of a provider's keys rests in ``keyring``, which model of which
provider is not worth asking at the moment in ``circuit``, and the order of tries in ``attempts``.
"""

from doorstep.gateway.traffic.attempts import Attempts, GiveUp, Traffic, Try, Wait

__all__ = ["Attempts", "GiveUp", "Traffic", "Try", "Wait"]
