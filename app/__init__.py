"""Farebox: an LLM inference proxy that sells tokens and can prove its books."""

__version__ = "0.1.0"
