"""Sources to shards: read once, write what every reader understands."""
