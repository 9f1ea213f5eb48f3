"""``python -m app.cli``: the same as the ``farebox`` command."""

from app.cli import main

main()
