"""Optimizers and learning rate schedules for language models."""
