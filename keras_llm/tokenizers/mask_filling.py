"""What tokens put into the gaps of a text."""

# What is trimmed from answers and around gaps, in Python and in graphs.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def fillings(tokenizer):
    """What each token adds to a text that ends with a word.

    Yields:
        For each token id a pair: a str, "" for special tokens, and whether it continues the word
        before.
    """
    special = {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id}
    special |= {tokenizer.mask_id, *getattr(tokenizer, "special_tokens", {}).values()}
    before = tokenizer.encode("a")
    known = len(tokenizer.decode(before))
    for index in range(tokenizer.vocabulary_size):
        text = "" if index in special else tokenizer.decode([*before, index])[known:]
        yield text.removeprefix(" "), bool(text) and not text.startswith(" ")


def shown(table, token):
    """A token id as it is shown, a str; `table` is the list of `fillings`."""
    text, joins = table[token]
    return "##" + text if joins and text[0].isalnum() else text
