"""Moving in: what other gateways, tracers and providers export, read as settings, records and rows of our own."""
