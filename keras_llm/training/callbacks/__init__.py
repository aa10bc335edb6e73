"""Callbacks for `fit`: progress, best weights, resume and TensorBoard."""
