"""Chains: one protocol, three channel backends."""
