"""How well a causal language model goes on with documents: how likely it finds them, how varied its
own texts are, and how much of them it has by heart."""

from keras_llm.errors import InputError

PROMPT, RUN = 8, 8  # tokens that are given, and tokens in a row that count as by heart
SETTINGS = {"temperature": 0.8, "top_p": 0.95}


def likelihood(task, documents, sequence_length, segments=False):
    """Perplexity, bits per byte and accuracy of a task on documents."""
    from keras_llm import data, training

    return training.evaluate_language_model(
        task.model,
        data.encode_documents(documents, task.tokenizer),
        _bytes(documents),
        task.tokenizer.bos_id,
        sequence_length,
        segments=segments,
    )


def baselines(task, train_ids, held_out_ids, held_out):
    """The measures of the models that count single tokens, and three in a row.

    Args:
        task: a `TextGeneration`.
        train_ids, held_out_ids: int arrays from `encode_documents`.
        held_out: list of str, the documents of `held_out_ids`.
    """
    from keras_llm import training

    arguments = (train_ids, held_out_ids, _bytes(held_out), task.tokenizer.bos_id)
    size = task.model.config.vocabulary_size
    return {
        "unigram": training.evaluate_unigram(*arguments, size),
        "trigram": training.evaluate_trigram(*arguments, size),
    }


def sample(task, options):
    """What the model makes of the prompt, quoted, for TensorBoard."""
    settings = {"max_new_tokens": 60, "temperature": 0.8, "top_p": 0.95, "seed": options.seed}
    try:
        text = task(options.prompt, **settings)
    except InputError as error:  # of a loss that is not finite; the training tells by itself
        return str(error)
    quoted = (options.prompt + text).replace("\n", "\n> ")
    return f"> {quoted}"


def measure(task, train_ids, held_out_ids, count, length, seed):
    """Continue held-out documents, and compare with how they really go on.

    Args:
        task: a `TextGeneration`.
        train_ids, held_out_ids: int arrays from `encode_documents`.
        count: int > 0, how many documents are continued, if there are as many of enough tokens.
        length: int, how many tokens are added to each.
        seed: int.

    Returns:
        A dict with a dict for `generated` and for `real`, what was generated and what stands
        there in as many tokens: `distinct_1`, `distinct_2` and `distinct_3`, the shares of
        different n-grams, and `memorized_8`, the share of runs of 8 tokens that stand in the
        training; and `texts`, how many there are. Empty if no held-out document is long enough.
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
    found = task(
        [prompt for prompt, _ in pairs],
        max_new_tokens=length,
        seed=seed,
        return_details=True,
        **SETTINGS,
    )
    generated = [result.token_ids for result in found]
    real = [row[PROMPT : PROMPT + len(ids)] for (_, row), ids in zip(pairs, generated, strict=True)]
    if not any(len(ids) >= RUN for ids in generated):
        return {}
    return {
        "texts": len(pairs),
        "generated": _measures(generated, train_ids),
        "real": _measures(real, train_ids),
    }


def note(found):
    """A line for a model card."""
    if not found:
        return "No held-out document was continued: none was long enough."
    ours, real = found["generated"], found["real"]
    variety = ", ".join(
        f"distinct-{n} {ours[f'distinct_{n}']:.3f} (real text {real[f'distinct_{n}']:.3f})"
        for n in (1, 2, 3)
    )
    return (
        f"Continuations of {found['texts']} held-out documents ({SETTINGS}): {variety}; of their "
        f"runs of {RUN} tokens {ours[f'memorized_{RUN}']:.1%} stand verbatim in the training text "
        f"({real[f'memorized_{RUN}']:.1%} of those of the real continuations)."
    )


def _measures(texts, train_ids):
    from keras_llm import training

    found = {f"distinct_{n}": training.distinct_n(texts, n) for n in (1, 2, 3)}
    return found | {f"memorized_{RUN}": training.memorization_rate(texts, train_ids, RUN)}


def _bytes(texts):
    return sum(len(text.encode()) for text in texts)
