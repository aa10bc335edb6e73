"""Trace a task's signatures and lower them to TFLite graphs whose weights are inputs."""
