"""Train models with one short script per task, from raw text to an exportable model."""

RECIPES = {
    "chatbot": "train a chat model, from scratch or from a checkpoint with LoRA",
    "code_generation": "train a causal language model that continues and infills code",
    "masked_lm": "train an encoder that predicts masked words",
    "preference_tuning": "tune a model on preferences with DPO or ORPO",
    "question_answering": "train a model that answers questions, about a text or from memory",
    "text_classification": "train an encoder that classifies or rates texts",
    "text_generation": "train a causal language model that continues text",
    "translation": "train an encoder-decoder that translates",
    "word_vectors": "train word vectors: skip-gram, CBOW or GloVe",
}
