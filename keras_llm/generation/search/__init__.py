"""Search for texts: beam search, contrastive search, speculative decoding, sample-and-rank."""
