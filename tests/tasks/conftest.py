"""A smaller task than the trained one, for what holds of any model."""

import pytest


@pytest.fixture(scope="session")
def shallow(task):
    """One layer with random weights, for which a graph is traced in half the time, and one task for
    all tests, so that each is traced once. With a tied head a random model says the last token over
    again."""
    import keras_llm
    from keras_llm import models

    size = task.model.config.vocabulary_size
    options = {"vocabulary_size": size, "num_layers": 1, "tie_embeddings": False}
    config = models.preset("llama-tiny", **options, initializer_range=0.3)
    return keras_llm.TextGeneration(models.causal_lm(config), task.tokenizer)
