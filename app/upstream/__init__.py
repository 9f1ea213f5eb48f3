"""Providers: how requests leave for an upstream and how its answers come back."""
