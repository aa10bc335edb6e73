"""Compute losses that Keras does not provide."""
