"""One short script for each task, from raw text to a shipped artefact."""

RECIPES = {
    "code_generation": "train a causal language model that continues code and fills gaps in it",
    "masked_lm": "train an encoder that guesses hidden words",
    "text_classification": "train an encoder that sorts texts into classes",
    "text_generation": "train a causal language model that continues text",
    "translation": "train an encoder-decoder that translates",
    "word_vectors": "train word vectors: skip-gram, CBOW or GloVe",
}
