"""Tasks: data, model, loss, metric and target, one per file."""
