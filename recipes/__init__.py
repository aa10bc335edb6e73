"""One short script for each task, from raw text to a shipped artefact."""

RECIPES = {
    "chatbot": "train a model that answers, from scratch or a checkpoint with LoRA",
    "code_generation": "train a causal language model that continues code and fills gaps in it",
    "masked_lm": "train an encoder that guesses hidden words",
    "preference_tuning": "tune a model by preferences: DPO or ORPO",
    "question_answering": "train a model that answers questions, about a text or from memory",
    "text_classification": "train an encoder that sorts texts into classes",
    "text_generation": "train a causal language model that continues text",
    "translation": "train an encoder-decoder that translates",
    "word_vectors": "train word vectors: skip-gram, CBOW or GloVe",
}
