"""Show progress, keep the best weights, resume and log to TensorBoard during `fit`."""
