"""Measures of summaries, as rouge-score computes them."""

from keras_llm.errors import InputError

_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def evaluate_summaries(summaries, references, stemming=True):
    """ROUGE of summaries, the mean over them.

    Args:
        summaries: list of str.
        references: list of as many str. Lines are the sentences that `rougeLsum` takes.
        stemming: bool. Whether endings of English words are cut off, as in most papers.

    Returns:
        A dict of `rouge1`, `rouge2`, `rougeL` and `rougeLsum`, F1 in [0, 1]. Words are runs of
        ASCII letters and digits: other scripts count for nothing.

    Raises:
        InputError: if the lists are empty or of unequal length, or rouge-score is not installed.

    Reference:
        Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError("this needs rouge-score: pip install rouge-score.") from None
    if not summaries or len(summaries) != len(references):
        raise InputError(
            f"evaluate_summaries: {len(summaries)} summaries and {len(references)} references; "
            "there must be as many of both, at least one."
        )
    scorer = RougeScorer(_KINDS, use_stemmer=stemming)
    pairs = zip(references, summaries, strict=True)
    scores = [scorer.score(reference, summary) for reference, summary in pairs]
    return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in _KINDS}
