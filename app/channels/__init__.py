"""Payment channels: what a channel is and may do."""
