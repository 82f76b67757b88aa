"""Renderers: messages to tokens and back, by what lies in a model's folder."""
