"""The HTTP surface, by audience."""
