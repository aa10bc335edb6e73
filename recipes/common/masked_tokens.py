"""Batch and evaluate masked tokens, with or without next sentence prediction."""


def batches(options, task, documents, token_ids, seed=None):
    """Return a `tf.data.Dataset` of masked windows; with `next_sentence`, of pairs of passages.

    Args:
        options: `masked_lm.Options`.
        task: a `MaskedLanguageModel`.
        documents: list of str.
        token_ids: token ids of the documents from `data.encode_documents`.
        seed: int, or None for one epoch in order, without the last incomplete batch.
    """
    from keras_llm import data

    size, length = options.batch_size, options.sequence_length
    epochs = 1 if seed is None else options.epochs
    masks = {"rate": options.mask_rate, "whole_words": options.whole_words}
    if not options.next_sentence:
        return task.dataset(token_ids, size, epochs, seed, length, drop_remainder=True, **masks)
    pairs = data.sentence_pairs(documents, task.tokenizer, length)
    if seed is None:
        size = min(size, len(pairs.first))
    return data.sentence_pair_dataset(
        pairs, task.tokenizer, size, epochs, seed or 0, shuffle=seed is not None, **masks
    )


def measured(task, judge, batches):
    """Evaluate the prediction of masked tokens; see `training.evaluate_targets`.

    If `judge` is a `NextSentence` task and not None, add its accuracy.
    """
    import numpy as np

    from keras_llm import training

    metrics = training.evaluate_targets(task.model, _token_targets(batches), task.tokenizer.pad_id)
    if judge:
        names = [tensor.name for tensor in judge.model.inputs]
        right = [
            np.argmax(judge.model({name: x[name] for name in names}), -1) == y["next_sentence"]
            for x, y in batches
        ]
        metrics["next_sentence_accuracy"] = float(np.concatenate(right).mean())
    return metrics


def most_frequent(task, train_ids, batches):
    """Evaluate a baseline that predicts by token frequency in the training data."""
    import numpy as np

    from keras_llm import training

    tokenizer = task.tokenizer
    targets = np.concatenate([y.numpy().reshape(-1) for _, y in _token_targets(batches)])
    return training.evaluate_most_frequent(
        train_ids[~np.isin(train_ids, [tokenizer.bos_id, tokenizer.eos_id])],
        targets[targets != tokenizer.pad_id],
        tokenizer.vocabulary_size,
    )


def _token_targets(batches):
    """Return the batches with only the masked tokens as targets."""
    return batches.map(lambda x, y: (x, y["tokens"] if isinstance(y, dict) else y))
