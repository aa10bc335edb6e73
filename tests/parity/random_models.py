"""Make random transformers models and batches for the parity tests."""

import numpy as np
import torch
import transformers

PAD = 1  # RoBERTa's; no other token in the batches below has this id
LENGTHS = np.array([17, 3, 11])


def random_model(name, config, untie=False):
    """Return a transformers model with random weights, including norms and biases."""
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "norm" in path.lower() and path.endswith("weight"):
                weight.uniform_(-0.3, 0.3) if "gemma" in config.model_type else weight.uniform_(
                    0.5, 1.5
                )
            elif weight.ndim == 1:
                weight.normal_(std=0.3)
            else:
                weight.normal_(std=0.2)
        if untie:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.2)
    return model


def ragged_batch(seed=0):
    token_ids = np.random.default_rng(seed).integers(2, 97, (3, LENGTHS.max()))
    mask = np.arange(LENGTHS.max()) < LENGTHS[:, None]
    return np.where(mask, token_ids, PAD), mask


def run_torch(model, **inputs):
    with torch.no_grad():
        return model(**{name: torch.tensor(np.asarray(value)) for name, value in inputs.items()})
