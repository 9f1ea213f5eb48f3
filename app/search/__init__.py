"""Web search: the backends, and the loop in which a model's searches are run."""
