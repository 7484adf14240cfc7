"""Rules that fuse estimate and update, one per file."""
