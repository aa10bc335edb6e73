"""Searches over texts: beam, contrastive, speculative, sample-and-rank."""
