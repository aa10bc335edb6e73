"""Compute ROUGE of summaries with rouge-score."""

from collections.abc import Sequence

from keras_llm.errors import InputError, require_list

_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def evaluate_summaries(
    summaries: Sequence[str], references: Sequence[str], stemming: bool = True
) -> dict[str, float]:
    """Compute the mean ROUGE scores of summaries.

    Args:
        summaries: list of str.
        references: list of str of the same length. `rougeLsum` treats lines as sentences.
        stemming: bool. Whether to stem English words (Porter), as in most papers.

    Returns:
        A dict of `rouge1`, `rouge2`, `rougeL` and `rougeLsum`, F1 in [0, 1]. Words are runs of
        ASCII letters and digits; rouge-score ignores all other scripts.

    Raises:
        InputError: if the lists are empty or differ in length, or rouge-score is not installed.

    Reference:
        Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError("evaluate_summaries needs rouge-score: pip install rouge-score.") from None
    require_list("summaries", summaries)
    require_list("references", references)
    if not summaries or len(summaries) != len(references):
        raise InputError(
            "evaluate_summaries: `summaries` and `references` must have the same length, at least "
            f"1; got {len(summaries)} summaries and {len(references)} references."
        )
    scorer = RougeScorer(_KINDS, use_stemmer=stemming)
    pairs = zip(references, summaries, strict=True)
    scores = [scorer.score(reference, summary) for reference, summary in pairs]
    return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in _KINDS}
