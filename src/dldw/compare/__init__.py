"""Methods side by side: budget, meter, runs and their records."""
