"""Reconciliation: what happened, added up again from the rows."""
