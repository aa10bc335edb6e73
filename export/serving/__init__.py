"""Serve SavedModels: a development server, clients, and config files for TensorFlow Serving."""
