"""Compose a model from Keras layers, train it briefly and export it, for the demo."""

from keras_llm.recipes.common import greedy_texts
from keras_llm.silence import silent_stderr

EXPORTS = {
    "saved_model": "serving/own",
    "litert": "mobile/own.tflite",
    "litert_lm": "mobile/own.litertlm",
}
TOKENS = 30_720  # of the training text, which is read 4 times


def demonstrate(tokenizer, documents, prompts, folder):
    """Compose, train and export a model of convolution, attention and recurrence.

    Args:
        tokenizer: a tokenizer.
        documents: list of str; the model learns the first ones.
        prompts: list of str.
        folder: path to write `EXPORTS` in.

    Returns:
        A dict with `losses`, `texts` (see `greedy_texts.of`) and the `reports` of the exports.
    """
    import keras
    from keras import layers

    import keras_llm
    from keras_llm import data

    size, dim = tokenizer.vocabulary_size, 64
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(size, dim)(token_ids)
    x = x + layers.Conv1D(dim, 4, padding="causal", activation="gelu")(x)
    h = layers.LayerNormalization()(x)
    x = x + layers.MultiHeadAttention(4, dim // 4)(h, h, use_causal_mask=True)
    x = x + layers.GRU(dim, return_sequences=True)(layers.LayerNormalization()(x))
    model = keras.Model(token_ids, layers.Dense(size)(layers.LayerNormalization()(x)))

    task = keras_llm.TextGeneration(model, tokenizer, max_length=128)
    task.compile(learning_rate=3e-3)
    rows = data.encode_documents(documents, tokenizer)[: TOKENS + 1]
    history = task.fit(rows, batch_size=16, epochs=4, sequence_length=64, verbose=0)
    paths = {name: folder / path for name, path in EXPORTS.items()}
    with silent_stderr():
        reports = {name: task.export(name, path, overwrite=True) for name, path in paths.items()}
    return {
        "losses": history.history["loss"],
        "texts": greedy_texts.of(task, paths, prompts),
        "reports": reports,
    }
