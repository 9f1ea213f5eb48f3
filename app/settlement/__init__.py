"""Chain work beside the requests: the watcher and the settler."""
