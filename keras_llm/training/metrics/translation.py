"""Compute BLEU and chrF of translations with sacrebleu."""

from collections.abc import Sequence

from keras_llm.errors import InputError, require_list


def evaluate_translations(
    translations: Sequence[str], references: Sequence[str], tokenizer: str = "13a"
) -> dict[str, float | str]:
    """Compute corpus BLEU and chrF.

    Args:
        translations: list of str.
        references: list of str of the same length.
        tokenizer: str, sacrebleu's tokenizer for BLEU: "13a", "zh", "char" or another.

    Returns:
        A dict: `bleu` and `chrf`, 0 to 100, and sacrebleu's `bleu_signature` and `chrf_signature`,
        str.

    Raises:
        InputError: if the lists are empty or differ in length, sacrebleu is not installed, or
            `tokenizer` is unknown.

    References:
        Post, 2018, "A Call for Clarity in Reporting BLEU Scores".
        Popovic, 2015, "chrF: character n-gram F-score for automatic MT evaluation".
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise InputError("evaluate_translations needs sacrebleu: pip install sacrebleu.") from None
    require_list("translations", translations)
    require_list("references", references)
    if not translations or len(translations) != len(references):
        raise InputError(
            "evaluate_translations: `translations` and `references` must have the same length, at "
            f"least 1; got {len(translations)} translations and {len(references)} references."
        )
    if tokenizer not in BLEU.TOKENIZERS:
        raise InputError(
            f"evaluate_translations: `tokenizer` must be one of "
            f"{', '.join(sorted(BLEU.TOKENIZERS))}, got {tokenizer!r}."
        )
    scores: dict[str, float | str] = {}
    for name, metric in (("bleu", BLEU(tokenize=tokenizer)), ("chrf", CHRF())):
        scores[name] = float(metric.corpus_score(translations, [references]).score)
        scores[f"{name}_signature"] = str(metric.get_signature())
    return scores
