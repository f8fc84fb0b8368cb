"""Pages about what was trained: they read run folders and never train."""
