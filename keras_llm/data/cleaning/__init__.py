"""Filter, deduplicate and redact documents."""
