"""Batch pairs of texts for an encoder-decoder, and evaluate translations."""

_LENGTHS = (5, 10, 20, 10**6)  # upper bounds of the words of a source, for metrics by length


def batches(task, rows, options, seed=None):
    """Return a `tf.data.Dataset` of inputs and targets, and the number of too long pairs."""
    from keras_llm import data

    tokenizer = task.tokenizer
    sources, targets = (tokenizer.encode_batch([row[side] for row in rows]) for side in (0, 1))
    sources = [[*ids, tokenizer.eos_id] for ids in sources]
    targets = [[tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in targets]
    fits = [
        max(map(len, pair)) <= options.max_length for pair in zip(sources, targets, strict=True)
    ]
    columns = {
        name: [row for row, fit in zip(column, fits, strict=True) if fit]
        for name, column in (("source", sources), ("target", targets))
    }
    lengths = [[len(row) for row in column] for column in columns.values()]
    plan = data.batch_plan(lengths, options.batch_size, options.epochs, seed)
    dataset = data.padded_dataset(columns, plan, tokenizer.pad_id).map(
        lambda b: (
            {"encoder_token_ids": b["source"], "decoder_token_ids": b["target"][:, :-1]},
            b["target"][:, 1:],
        )
    )
    return dataset, len(rows) - sum(fits)


def translated(task, texts, longest, **settings):
    """Translate texts in batches of similar length.

    Args:
        task: a `Translation`.
        texts: list of str.
        longest: int, maximum tokens of a translation.
        **settings: generation settings, such as `beam_width`.

    Returns:
        A list of str, in the order of `texts`.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    translations = [""] * len(texts)
    longest = min(longest, task.model.config.max_length - 1)
    for begin in range(0, len(texts), 32):
        part = order[begin : begin + 32]
        batch = task([texts[i] for i in part], max_new_tokens=longest, **settings)
        for index, text in zip(part, batch, strict=True):
            translations[index] = text
    return translations


def nearest(train, rows):
    """Return for each row the target of the nearest training source by TF-IDF of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]")
    known = words.fit_transform([source for source, _ in train])
    queries = words.transform([source for source, _ in rows])
    return [train[int((known @ row.T).toarray().argmax())][1] for row in queries]


def measured(found, rows, options):
    """Compute BLEU and chrF of translations against the targets of the rows."""
    from keras_llm import training

    references = [target for _, target in rows]
    return training.evaluate_translations(found, references, options.bleu_tokenizer)


def by_length(found, rows, options):
    """Compute BLEU and chrF by the number of words of the source; returns a list of dicts."""
    table, shortest = [], 1
    for longest in _LENGTHS:
        picked = [i for i, row in enumerate(rows) if shortest <= len(row[0].split()) <= longest]
        if picked:
            row = measured([found[i] for i in picked], [rows[i] for i in picked], options)
            table.append({"words_from": shortest, "sources": len(picked), **row})
        shortest = longest + 1
    return table
