"""Train on several devices."""
