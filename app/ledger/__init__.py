"""The ledger: two-phase transfers, balances that are derived, decisions made in the database."""
