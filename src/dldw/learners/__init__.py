"""Rules that fuse estimate and update: learners that own their optimizers. One per file."""
