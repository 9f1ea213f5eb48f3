"""Prices, usage and quotes: pure arithmetic over integers."""
