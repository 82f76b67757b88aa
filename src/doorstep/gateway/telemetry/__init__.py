"""OpenTelemetry, out and in, beside the traffic and never in its way.

Out: the record becomes spans (``spans``) and metrics (``measures``), which a process of its own (``exporter``, started
by ``export``) sends to a collector. In: ``intake`` takes the spans of other systems, ``reading`` finds the model calls
in them, and they become runs and calls of the record. ``otlp`` is the wire format, and knows nothing of models.
"""
