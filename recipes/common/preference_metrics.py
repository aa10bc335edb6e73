"""Evaluate preference tuning on held-out pairs and prompts."""

from keras_llm.recipes.common import preference_pairs


def measured(options, tuned, dataset, reference, texts_before):
    """Compute the metrics of the tuned model on held-out pairs and prompts.

    Args:
        options: `Options`.
        tuned: the tuned task.
        dataset: `preference_pairs.Pairs`.
        reference: float array (N, 2), log-probabilities of the held-out pairs under the initial
            model.
        texts_before: list of str, the answers of the initial model.

    Returns:
        A dict: `reward_accuracy` and `reward_margin` of the held-out pairs, with the reward
        `beta (log p - log p before)`; `likelihood_accuracy`, how often the chosen answer is more
        likely; `kl`, in nats per answer, the mean of `log p - log p before` over answers of the
        tuned model; `win_rate` of its answers against those of the initial model, and their mean
        `judge_score`.
    """
    import keras_llm
    from keras_llm import training

    texts, examples = preference_pairs.answers(options, tuned, dataset)
    model = keras_llm.load(options.start).model
    log_p = training.log_probabilities(tuned.model, examples)
    kl = log_p - training.log_probabilities(model, examples)
    scores, scores_before = (_score(dataset, answers) for answers in (texts, texts_before))
    return {
        **rewards(options, tuned.model, dataset.held_out, reference),
        "kl": kl.mean().item(),
        "win_rate": _share_above(scores - scores_before),
        "judge_score": scores.mean().item(),
        "prompts": len(dataset.prompts),
    }


def before(dataset, reference, texts):
    """Compute the metrics that apply to the initial model; see `measured`."""
    return {
        "likelihood_accuracy": _share_above(reference[:, 0] - reference[:, 1]),
        "win_rate": 0.5,
        "judge_score": _score(dataset, texts).mean().item(),
    }


def rewards(options, model, pairs, reference):
    """Compute the metrics of a model on held-out pairs; see `measured`."""
    log_probabilities = log_p(model, pairs)
    rewards = options.beta * (log_probabilities - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    return {
        "reward_accuracy": _share_above(margin),
        "reward_margin": margin.mean().item(),
        "likelihood_accuracy": _share_above(log_probabilities[:, 0] - log_probabilities[:, 1]),
        "pairs": len(pairs),
    }


def log_p(model, pairs):
    """Return log-probabilities of chosen and rejected answers in nats, float array (N, 2)."""
    from keras_llm import training

    rows = [example for pair in pairs for example in pair]
    return training.log_probabilities(model, rows).reshape(-1, 2)


def _score(dataset, texts):
    if dataset.judged_with_prompt:
        texts = [prompt + text for prompt, text in zip(dataset.prompts, texts, strict=True)]
    return dataset.judge(texts)


def _share_above(differences):
    """Return the share of differences above 0; ties count half."""
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())
