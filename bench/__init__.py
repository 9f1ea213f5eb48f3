"""The benchmark harness behind `make bench`: what a paid request costs, next to the same request unpaid.

Nothing in `app/` imports this package and it imports nothing from `app/`: Farebox is measured from the
outside, through the command and the configuration file its operators use.
"""
