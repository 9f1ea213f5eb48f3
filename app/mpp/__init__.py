"""The payment protocol's wire primitives. Pure."""
