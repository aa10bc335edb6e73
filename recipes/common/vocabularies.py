"""Choose vocabularies that fit the text: of tokenizers, and of TF-IDF baselines."""

from keras_llm.recipes.common import runs


def sentence_piece(texts, vocabulary_size, model_type):
    """Train a `tokenizers.SentencePiece`; a short text gets a smaller vocabulary, with a note."""
    from keras_llm import tokenizers

    tokenizer = tokenizers.SentencePiece.train(texts, vocabulary_size, model_type, shrink=True)
    if tokenizer.vocabulary_size < vocabulary_size:
        runs.say(
            f"note: the text has too few different pieces for --vocabulary-size {vocabulary_size}; "
            f"the vocabulary has {tokenizer.vocabulary_size}"
        )
    return tokenizer


def tfidf(texts):
    """Return an unfitted `TfidfVectorizer` of words, or of characters if no text has a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    units = TfidfVectorizer()
    has_words = any(map(units.build_analyzer(), texts))
    return units if has_words else TfidfVectorizer(analyzer="char", ngram_range=(1, 2))
