"""How well held-out texts are translated, by a model and by a translation memory."""

_LENGTHS = (5, 10, 20, 10**6)  # words of a source up to which a row of the table by length goes


def translated(task, rows, options):
    """What beam search makes of the source of each row, a list of str."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    found = [""] * len(rows)
    room = task.model.config.max_length
    for begin in range(0, len(rows), 32):
        part = order[begin : begin + 32]
        texts = task(
            [rows[i][0] for i in part],
            max_new_tokens=min(2 * options.max_length, room - 1),
            beam_width=options.beam_width,
        )
        for index, text in zip(part, texts, strict=True):
            found[index] = text
    return found


def nearest(train, rows):
    """A translation memory: for each row the target of the training source that is most alike in
    the TF-IDF of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]")
    known = words.fit_transform([source for source, _ in train])
    asked = words.transform([source for source, _ in rows])
    return [train[int((known @ row.T).toarray().argmax())][1] for row in asked]


def measured(found, rows, options):
    """BLEU and chrF of translations against the targets of the rows."""
    from keras_llm import training

    references = [target for _, target in rows]
    return training.evaluate_translations(found, references, options.bleu_tokenizer)


def by_length(found, rows, options):
    """BLEU and chrF for sources of few and of many words, a list of dicts."""
    table, shortest = [], 1
    for longest in _LENGTHS:
        picked = [i for i, row in enumerate(rows) if shortest <= len(row[0].split()) <= longest]
        if picked:
            row = measured([found[i] for i in picked], [rows[i] for i in picked], options)
            table.append({"words_from": shortest, "sources": len(picked), **row})
        shortest = longest + 1
    return table
