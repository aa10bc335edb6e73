"""Build, apply and evaluate models from text to text."""

from keras_llm.errors import InputError
from keras_llm.recipes.common import runs, vocabularies

_LENGTHS = (5, 10, 20, 10**6)  # upper bounds of the words of a source, for metrics by length


def untrained(options, pairs, metadata):
    """Return an untrained `Translation` with one vocabulary for both sides of pairs."""
    from keras_llm import models, tasks

    longest = models.preset(options.preset).max_length
    fits = options.max_length <= longest
    options.check(("max_length", fits, f"at most the preset's {longest}"))
    texts = [text for pair in pairs for text in pair]
    tokenizer = vocabularies.sentence_piece(texts, options.vocabulary_size, "bpe")
    config = models.preset(
        options.preset,
        vocabulary_size=tokenizer.vocabulary_size,
        dropout=options.dropout,
        pad_id=tokenizer.pad_id,
        start_id=tokenizer.bos_id,
    )
    return tasks.Translation(models.seq2seq(config), tokenizer, metadata)


def short_pairs(task, pairs, options, warn=False):
    """Drop pairs of a text with more than `max_length` tokens, including begin and end tokens.

    Args:
        task: a `Translation`.
        pairs: list of pairs of str.
        options: options with `max_length`.
        warn: bool. Whether to warn if many pairs are dropped.

    Returns:
        The other pairs, and a dict of the number of dropped ones by reason.

    Raises:
        InputError: if all pairs are dropped.
    """
    sources, targets = (
        task.tokenizer.encode_batch([pair[side] for pair in pairs]) for side in (0, 1)
    )
    lengths = [
        max(len(source) + 1, len(target) + 2)
        for source, target in zip(sources, targets, strict=True)
    ]
    longest = options.max_length
    short = [pair for pair, length in zip(pairs, lengths, strict=True) if length <= longest]
    if not short:
        raise InputError(f"none of {len(pairs)} pairs fits into --max-length {longest}.")
    if warn:
        runs.warn_of_long(options, lengths)
    dropped = len(pairs) - len(short)
    return short, {f"longer than {longest} tokens": dropped} if dropped else {}


def held_out_batches(task, pairs, options):
    """Return the batches of the pairs that are not too long, and the number of others by reason."""
    short, dropped = short_pairs(task, pairs, options)
    return task.dataset(short, options.batch_size), dropped


def shortened(task, texts):
    """Cut texts that do not fit the model at their end; returns them and the number of cut ones."""
    room, results = task.model.config.max_length - 1, []
    for text, ids in zip(texts, task.tokenizer.encode_batch(texts), strict=True):
        keep = len(ids)
        while len(ids) > room:  # the cut text may have other tokens
            keep = min(keep - 1, room)
            text = task.tokenizer.decode(ids[:keep])
            ids = task.tokenizer.encode(text)
        results.append(text)
    cut = sum(new != old for new, old in zip(results, texts, strict=True))
    return results, cut


def translated(task, texts, longest, **settings):
    """Translate texts that fit the model in batches of similar length.

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
