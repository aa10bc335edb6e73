"""Models combined with a training objective."""
