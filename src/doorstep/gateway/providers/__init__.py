"""Providers: one module per kind of upstream."""
