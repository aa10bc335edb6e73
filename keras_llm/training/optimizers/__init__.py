"""Optimize language models: AdamW, Lion, Muon and learning rate schedules."""
