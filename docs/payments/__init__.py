"""What plays and writes `docs/payments.md`."""
