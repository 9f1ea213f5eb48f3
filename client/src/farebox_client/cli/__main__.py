"""``python -m farebox_client.cli``."""

from farebox_client.cli import main

main()
