"""Upstreams as they are in the wild, replayed over real HTTP on loopback."""
