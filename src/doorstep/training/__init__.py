"""The training service: the Tinker wire protocol on an engine. Knows sessions, futures and checkpoints, no tensors."""
