"""Evaluate the continuations of a causal language model: diversity and memorization."""

from keras_llm.errors import InputError

PROMPT, RUN = 8, 8  # tokens of a prompt, and of a run that counts as memorized
SETTINGS = {"temperature": 0.8, "top_p": 0.95}


def baselines(task, train_ids, held_out_ids, held_out):
    """Compute the metrics of the unigram and trigram baselines.

    Args:
        task: a `TextGeneration`.
        train_ids, held_out_ids: int arrays from `encode_documents`.
        held_out: list of str, the documents of `held_out_ids`.

    Returns:
        A dict of dicts, `unigram` and `trigram`.
    """
    from keras_llm import training

    arguments = (train_ids, held_out_ids, _bytes(held_out), task.tokenizer.bos_id)
    size = task.model.config.vocabulary_size
    return {
        "unigram": training.evaluate_unigram(*arguments, size),
        "trigram": training.evaluate_trigram(*arguments, size),
    }


def sample(task, options):
    """Continue the prompt of the options and return a Markdown quote for TensorBoard."""
    settings = {"max_new_tokens": 60, "temperature": 0.8, "top_p": 0.95, "seed": options.seed}
    try:
        text = task(options.prompt, **settings)
    except InputError as error:  # NaN logits; training reports the error itself
        return str(error)
    quoted = (options.prompt + text).replace("\n", "\n> ")
    return f"> {quoted}"


def measure(task, train_ids, held_out_ids, count, length, seed):
    """Compare generated continuations of held-out documents with the real ones.

    Args:
        task: a `TextGeneration`.
        train_ids, held_out_ids: int arrays from `encode_documents`.
        count: int > 0, the maximum number of documents.
        length: int, the number of tokens to generate for each.
        seed: int.

    Returns:
        A dict: `texts`, the number of documents, and dicts for `generated` and for `real`
        continuations of as many tokens, with `distinct_1`, `distinct_2` and `distinct_3`, the
        shares of distinct n-grams, and `memorized_8`, the share of runs of 8 tokens that occur in
        the training data. Empty if no held-out document is long enough.
    """
    import numpy as np

    starts = np.flatnonzero(held_out_ids == task.tokenizer.bos_id) + 1
    ends = np.append(starts[1:] - 2, len(held_out_ids) - 1)
    documents = [held_out_ids[a:b].tolist() for a, b in zip(starts, ends, strict=True)]
    documents = [row for row in documents if len(row) >= PROMPT + length][:count]
    prompts = [task.tokenizer.decode(row[:PROMPT]) for row in documents]
    pairs = [(prompt, row) for prompt, row in zip(prompts, documents, strict=True) if prompt]
    if not pairs:
        return {}
    results = task(
        [prompt for prompt, _ in pairs],
        max_new_tokens=length,
        seed=seed,
        return_details=True,
        **SETTINGS,
    )
    generated = [result.token_ids for result in results]
    real = [row[PROMPT : PROMPT + len(ids)] for (_, row), ids in zip(pairs, generated, strict=True)]
    if not any(len(ids) >= RUN for ids in generated):
        return {}
    return {
        "texts": len(pairs),
        "generated": _measures(generated, train_ids),
        "real": _measures(real, train_ids),
    }


def note(continuations):
    """Return a line for a model card about the result of `measure`."""
    if not continuations:
        return "No held-out document was continued: none was long enough."
    generated, real = continuations["generated"], continuations["real"]
    diversity = ", ".join(
        f"distinct-{n} {generated[f'distinct_{n}']:.3f} (real text {real[f'distinct_{n}']:.3f})"
        for n in (1, 2, 3)
    )
    settings = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
    return (
        f"Continuations of {continuations['texts']} held-out documents ({settings}): {diversity}; "
        f"{generated[f'memorized_{RUN}']:.1%} of their runs of {RUN} tokens occur verbatim in the "
        f"training text ({real[f'memorized_{RUN}']:.1%} for the real continuations)."
    )


def _measures(texts, train_ids):
    from keras_llm import training

    metrics = {f"distinct_{n}": training.distinct_n(texts, n) for n in (1, 2, 3)}
    return metrics | {f"memorized_{RUN}": training.memorization_rate(texts, train_ids, RUN)}


def _bytes(texts):
    return sum(len(text.encode()) for text in texts)
