"""What tuning by preferences did to a model, on pairs and prompts that were held out."""

from keras_llm.recipes.common import preference_pairs


def measured(options, tuned, found, reference, texts_before):
    """What the tuned model does on what was held out.

    Args:
        options: `Options`.
        tuned: the task after the training.
        found: `preference_pairs.Pairs`.
        reference: float array (N, 2), log-probabilities of the held-out pairs before it.
        texts_before: list of str, the answers before it.

    Returns:
        A dict: `reward_accuracy` and `reward_margin` of the held-out pairs, the reward
        `beta (log p - log p before)`; `likelihood_accuracy`, how often the chosen answer is the
        likelier; `kl`, nats of an answer, the mean of `log p - log p before` over answers of the
        tuned model; `win_rate` of its answers over those before, and their mean `judge_score`.
    """
    import keras_llm
    from keras_llm import training

    texts, drawn = preference_pairs.answers(options, tuned, found.prompts, found.parse_special)
    model = keras_llm.load(options.start).model
    kl = training.log_probabilities(tuned.model, drawn) - training.log_probabilities(model, drawn)
    now, then = (_score(found, some) for some in (texts, texts_before))
    return {
        **rewards(options, tuned.model, found.held_out, reference),
        "kl": kl.mean().item(),
        "win_rate": _share_above(now - then),
        "judge_score": now.mean().item(),
        "prompts": len(found.prompts),
    }


def before(found, reference, texts):
    """The same of the model before, as far as it has them; arguments as of `measured`."""
    return {
        "likelihood_accuracy": _share_above(reference[:, 0] - reference[:, 1]),
        "win_rate": 0.5,
        "judge_score": _score(found, texts).mean().item(),
    }


def rewards(options, model, pairs, reference):
    """What held-out pairs tell of a model: a dict, see `measured`."""
    found = log_p(model, pairs)
    rewards = options.beta * (found - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    return {
        "reward_accuracy": _share_above(margin),
        "reward_margin": margin.mean().item(),
        "likelihood_accuracy": _share_above(found[:, 0] - found[:, 1]),
        "pairs": len(pairs),
    }


def log_p(model, pairs):
    """Log-probabilities of the chosen and the rejected answers, float array (N, 2), in nats."""
    from keras_llm import training

    rows = [example for pair in pairs for example in pair]
    return training.log_probabilities(model, rows).reshape(-1, 2)


def _score(found, texts):
    if found.judged_with_prompt:
        texts = [prompt + text for prompt, text in zip(found.prompts, texts, strict=True)]
    return found.judge(texts)


def _share_above(differences):
    """How often a difference is above 0; a tie is half of that."""
    return float(((differences > 0) + 0.5 * (differences == 0)).mean())
