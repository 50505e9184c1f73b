"""Where bytes live: files and URLs by name. Knows nothing of tar or samples."""
