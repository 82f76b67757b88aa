"""Tokens in, tokens and gradients out. Program against ``api``; ``remote`` starts the engine's own process."""
