"""A task with a smaller model than the trained one, for tests that hold for any model."""

import pytest


@pytest.fixture(scope="session")
def shallow(task):
    """Return a task with one layer of random weights, which is traced in half the time.

    All tests share it, so that each graph is traced once. The embeddings are not tied, because a
    random model with tied embeddings repeats the last token.
    """
    import keras_llm
    from keras_llm import models

    size = task.model.config.vocabulary_size
    options = {"vocabulary_size": size, "num_layers": 1, "tie_embeddings": False}
    config = models.preset("llama-tiny", **options, initializer_range=0.3)
    return keras_llm.TextGeneration(models.causal_lm(config), task.tokenizer)
