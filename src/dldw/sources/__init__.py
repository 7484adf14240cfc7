"""Sources of dL/dw: one method, or one family, per file."""
