"""Build, apply and evaluate models from text to text."""

from keras_llm.errors import InputError

_LENGTHS = (5, 10, 20, 10**6)  # upper bounds of the words of a source, for metrics by length


def untrained(options, pairs, metadata):
    """Return an untrained `Translation` with one vocabulary for both sides of pairs."""
    from keras_llm import models, tasks, tokenizers

    texts = [text for pair in pairs for text in pair]
    tokenizer = tokenizers.SentencePiece.train(texts, options.vocabulary_size, model_type="bpe")
    config = models.preset(
        options.preset,
        vocabulary_size=tokenizer.vocabulary_size,
        dropout=options.dropout,
        pad_id=tokenizer.pad_id,
        start_id=tokenizer.bos_id,
    )
    return tasks.Translation(models.seq2seq(config), tokenizer, metadata)


def short_pairs(task, pairs, longest):
    """Drop pairs of a text with more than `longest` tokens, including begin and end tokens.

    Returns:
        The other pairs, and a dict of the number of dropped ones by reason.

    Raises:
        InputError: if all pairs are dropped.
    """
    sources, targets = (
        task.tokenizer.encode_batch([pair[side] for pair in pairs]) for side in (0, 1)
    )
    short = [
        pair
        for pair, source, target in zip(pairs, sources, targets, strict=True)
        if len(source) < longest and len(target) + 1 < longest
    ]
    if not short:
        raise InputError(f"none of {len(pairs)} pairs fits into --max-length {longest}.")
    dropped = len(pairs) - len(short)
    return short, {f"longer than {longest} tokens": dropped} if dropped else {}


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
    results = [""] * len(texts)
    longest = min(longest, task.model.config.max_length - 1)
    for begin in range(0, len(texts), 32):
        part = order[begin : begin + 32]
        batch = task([texts[i] for i in part], max_new_tokens=longest, **settings)
        for index, text in zip(part, batch, strict=True):
            results[index] = text
    return results


def nearest(train, rows):
    """Return for each row the target of the nearest training source by TF-IDF of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]")
    sources = words.fit_transform([source for source, _ in train])
    queries = words.transform([source for source, _ in rows])
    return [train[int((sources @ row.T).toarray().argmax())][1] for row in queries]


def measured(translations, rows, options):
    """Compute BLEU and chrF of translations against the targets of the rows."""
    from keras_llm import training

    references = [target for _, target in rows]
    return training.evaluate_translations(translations, references, options.bleu_tokenizer)


def by_length(translations, rows, options):
    """Compute BLEU and chrF by the number of words of the source; returns a list of dicts."""
    table, shortest = [], 1
    for longest in _LENGTHS:
        picked = [i for i, row in enumerate(rows) if shortest <= len(row[0].split()) <= longest]
        if picked:
            row = measured([translations[i] for i in picked], [rows[i] for i in picked], options)
            table.append({"words_from": shortest, "sources": len(picked), **row})
        shortest = longest + 1
    return table
