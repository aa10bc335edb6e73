"""Measures of translations, as sacrebleu computes them."""

from keras_llm.errors import InputError


def evaluate_translations(translations, references, tokenizer="13a"):
    """BLEU and chrF of a corpus.

    Args:
        translations: list of str.
        references: list of as many str.
        tokenizer: str, how sacrebleu cuts words for BLEU: "13a", "zh", "char" and others.

    Returns:
        A dict: `bleu` and `chrf`, 0 to 100, and `bleu_signature` and `chrf_signature`, strs that
        say how they were computed.

    Raises:
        InputError: if the lists are empty or of unequal length, sacrebleu is not installed, or it
            has no such tokenizer.

    References:
        Post, 2018, "A Call for Clarity in Reporting BLEU Scores".
        Popovic, 2015, "chrF: character n-gram F-score for automatic MT evaluation".
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise InputError("this needs sacrebleu: pip install sacrebleu.") from None
    if not translations or len(translations) != len(references):
        raise InputError(
            f"evaluate_translations: {len(translations)} translations and {len(references)} "
            "references; there must be as many of both, at least one."
        )
    if tokenizer not in BLEU.TOKENIZERS:
        raise InputError(
            f"evaluate_translations: unknown `tokenizer` {tokenizer!r}; known: "
            f"{', '.join(sorted(BLEU.TOKENIZERS))}."
        )
    found = {}
    for name, metric in (("bleu", BLEU(tokenize=tokenizer)), ("chrf", CHRF())):
        found[name] = float(metric.corpus_score(translations, [references]).score)
        found[f"{name}_signature"] = str(metric.get_signature())
    return found
