"""The client that pays: its parts alone, against a strict edge, and against real chains."""
