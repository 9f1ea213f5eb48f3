"""Which provider a request goes to, and which of them are well."""
