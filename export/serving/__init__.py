"""Serve SavedModels: a development server, clients, and files for TensorFlow Serving."""
