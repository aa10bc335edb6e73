"""Share code between recipes: options, training runs, model cards and evaluation."""
