"""Train models: language modeling, distillation, preference tuning and sentence pairs."""
