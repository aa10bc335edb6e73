"""Batch documents with masked words, and evaluate their prediction."""


def batches(task, documents, token_ids, options, shuffle=False):
    """Return batches of the model's inputs and targets: masked tokens, and next sentence labels.

    Args:
        task: a `MaskedLanguageModel`.
        documents: list of str.
        token_ids: token ids of the documents from `data.encode_documents`.
        options: `masked_lm.Options`.
        shuffle: bool. False returns one epoch in order, without the last incomplete batch.

    Returns:
        `tf.data.Dataset`.
    """
    from keras_llm import data

    length, size, tokenizer = options.sequence_length, options.batch_size, task.tokenizer
    epochs = options.epochs if shuffle else 1
    settings = [epochs, options.seed, shuffle, options.mask_rate, options.whole_words]
    if options.next_sentence:
        pairs = data.sentence_pairs(documents, tokenizer, length)
        size = size if shuffle else min(size, len(pairs.first))
        dataset = data.sentence_pair_dataset(pairs, tokenizer, size, *settings)
    else:
        if not shuffle:
            size = min(size, max(1, data.windows(token_ids, length - 2)))
        dataset = data.masked_dataset(token_ids, tokenizer, length, size, *settings)
    names = [tensor.name for tensor in task.model.inputs]
    return dataset.map(lambda x, y: (_with_segments(x, names), y))


def alone(batches):
    """Return the batches with only the masked tokens as targets."""
    return batches.map(lambda x, y: (x, y["tokens"] if isinstance(y, dict) else y))


def measured(task, judge, batches):
    """Evaluate the prediction of masked tokens; see `training.evaluate_targets`.

    If `judge` is a `NextSentence` task and not None, add its accuracy.
    """
    import numpy as np

    from keras_llm import training

    metrics = training.evaluate_targets(task.model, alone(batches), task.tokenizer.pad_id)
    if judge:
        names = [tensor.name for tensor in judge.model.inputs]
        right = [
            np.argmax(judge.model({name: x[name] for name in names}), -1) == y["next_sentence"]
            for x, y in batches
        ]
        metrics["next_sentence_accuracy"] = float(np.concatenate(right).mean())
    return metrics


def _with_segments(inputs, names):
    import tensorflow as tf

    inputs = {"segment_ids": tf.zeros_like(inputs["token_ids"]), **inputs}
    return {name: inputs[name] for name in names}
