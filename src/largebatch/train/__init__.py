"""The training engine: it knows steps, ranks and checkpoints, and no task, model or data set by name."""
