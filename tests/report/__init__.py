"""The report: what it reads, what it rules, what it draws."""
