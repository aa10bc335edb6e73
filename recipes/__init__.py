"""Train models with one short script per task, from raw text to an exportable model."""
