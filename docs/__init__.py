"""Documentation, and what makes the pages that show a running server."""
