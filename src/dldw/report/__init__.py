"""The report: a pure function of results.jsonl."""
