"""Search for texts: beam search, contrastive search and speculative decoding."""
