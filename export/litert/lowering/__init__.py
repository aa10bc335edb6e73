"""Trace the signatures of a task and lower them to TFLite graphs whose weights are inputs."""
