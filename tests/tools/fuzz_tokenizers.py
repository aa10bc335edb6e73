"""Compare tokenizers in Python, in a graph and in the original libraries on random strings.

Run `python tests/tools/fuzz_tokenizers.py --count 100000 [KIND ...]`. Exits with 1 if any string
gets different ids.
"""

import argparse
import functools
import io
import json
import pathlib
import pydoc_data.topics
import random
import sys
import tempfile
import time

import sentencepiece
import tokenizers as rust
from sentencepiece import sentencepiece_model_pb2

from keras_llm import tokenizers
from keras_llm.tokenizers import sentencepiece_model

TEXTS = [*pydoc_data.topics.topics.values()][:30]
FLAGGED = {
    "[INST]": {},
    "[/INST]": {"rstrip": True},
    "<m>": {"lstrip": True},
    "<both>": {"lstrip": True, "rstrip": True},
    "word": {"single_word": True},
    "w": {"single_word": True, "lstrip": True},
    "<caf\u00e9>": {"normalized": True},
    "nrm": {"normalized": True, "single_word": True},
}
WORDS = ["the", "cat", "sat", "self.x", "10,000", "0000", "10", "00", "----", "====", "****", "..."]
CHARACTERS = (
    "abcdeht 0.,-_=*\n\t  \r\u00a0\u3000\u2581\ue000e\u0301\u00e9\ufb01\u00bd\u5b57\u7684🙂\x00"
)
PIECES = [
    *CHARACTERS,
    *WORDS,
    *FLAGGED,
    "caf\u00e9",
    "<cafe\u0301>",
    " ",
    "  ",
    "   ",
    "</s>",
    "<s>",
]
# Where each word gets a prefix, U+2581 in a text is a space; graphemes are normalized differently.
NO_MARKS = [piece for piece in PIECES if piece not in "\x00\u2581\u0301" and "\u0301" not in piece]


def strings(count, seed, pieces=PIECES):
    """Return random strings of up to 12 pieces."""
    rng = random.Random(seed)
    return ["".join(rng.choices(pieces, k=rng.randint(0, 12))) for _ in range(count)]


@functools.cache
def trained(model_type="bpe", size=600, **options):
    """Return a SentencePiece model that is unlike those of `SentencePiece.train`."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=writer,
        vocab_size=size,
        model_type=model_type,
        minloglevel=2,
        **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, **options},
    )
    return writer.getvalue()


def own(model_type):
    tok = tokenizers.SentencePiece.train(TEXTS, 600, model_type)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tok.model)

    def escaped(text):
        return text.replace("\ue000", "\ue000a").replace("\u2581", "\ue000b")

    return tok, lambda texts: processor.encode([escaped(text) for text in texts])


def original(model_type, **options):
    """Return a tokenizer of an external model and the original, with the rounded scores."""
    model = trained(model_type, **options)
    tok = tokenizers.SentencePiece(model, escape=False)
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model.exact(model))
    return tok, processor.encode


def with_merges(model):
    """Return a BPE of the `tokenizers` library with the pieces of a SentencePiece model."""
    pieces = sentencepiece_model_pb2.ModelProto.FromString(model).pieces
    ids = {piece.piece: index for index, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        if piece.type == 1:
            cuts = [(piece.piece[:k], piece.piece[k:]) for k in range(1, len(piece.piece))]
            cuts = [cut for cut in cuts if cut[0] in ids and cut[1] in ids]
            cuts.sort(key=lambda cut: (ids[cut[0]], ids[cut[1]]))
            merges += [(-piece.score, cut) for cut in cuts]
    merges = [cut for _, cut in sorted(merges, key=lambda merge: merge[0])]
    bpe = rust.models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return rust.Tokenizer(bpe)


def with_scores(model):
    """Return a Unigram of the `tokenizers` library with the pieces of a SentencePiece model."""
    pieces = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model.exact(model)).pieces
    scored = [(piece.piece, piece.score) for piece in pieces]
    return rust.Tokenizer(rust.models.Unigram(scored, 0, byte_fallback=True))


def converted(scheme, model_type="bpe", alone=False):
    """Return the tokenizer of a tokenizer.json and the original, without and with the model."""
    decoders, pre = rust.decoders, rust.pre_tokenizers
    options = {"byte_fallback": True, "character_coverage": 1.0, "size": 700, "pad_id": -1}
    options |= {"unk_id": 0, "bos_id": 1, "eos_id": 2}
    model = trained(model_type, **options)
    tok = with_merges(model) if model_type == "bpe" else with_scores(model)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)]
    normalizers = rust.normalizers
    if scheme == "legacy":
        tok.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    elif scheme == "gemma":
        tok.normalizer, strip = normalizers.Replace(" ", "\u2581"), []
        tok.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    elif scheme == "words":
        tok.pre_tokenizer = pre.Sequence([pre.WhitespaceSplit(), pre.Metaspace()])
    else:
        tok.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme, split=False)
    tok.decoder = decoders.Metaspace() if scheme == "words" else decoders.Sequence(steps + strip)
    special = ("<unk>", "<s>", "</s>")
    tok.add_special_tokens([rust.AddedToken(token, normalized=False) for token in special])
    flagged = FLAGGED
    if scheme == "words":  # normalized tokens are looked for in plain text
        flagged = {token: flags for token, flags in FLAGGED.items() if "normalized" not in flags}
    add(tok, flagged)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        tok.save(str(folder / "tokenizer.json"))
        if not alone:
            (folder / "tokenizer.model").write_bytes(model)
        return read(folder, tok)


def read(folder, tok, **config):
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours = tokenizers.from_hugging_face(folder)

    def reference(texts):
        return [encoding.ids for encoding in tok.encode_batch(texts, add_special_tokens=False)]

    return ours, reference


def add(tok, flagged):
    for token, flags in flagged.items():
        flags = {"normalized": False, **flags}
        tok.add_special_tokens([rust.AddedToken(token, special=True, **flags)])


def byte_pair(normalization):
    base = tokenizers.BytePair.train(TEXTS, 600, "qwen")
    merges = [tuple(merge.split(" ")) for merge in base.merges]
    tok = rust.Tokenizer(rust.models.BPE(base.vocabulary, merges))
    if normalization:
        tok.normalizer = rust.normalizers.NFC()
    tok.pre_tokenizer = base.rust.pre_tokenizer
    tok.decoder = rust.decoders.ByteLevel()
    add(tok, FLAGGED)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        tok.save(str(folder / "tokenizer.json"))
        return read(folder, tok, eos_token="<|eos|>", bos_token=None, unk_token=None)


def word_piece():
    base = tokenizers.WordPiece.train(TEXTS, 600)
    tok = rust.Tokenizer.from_str(base.rust.to_str())
    add(tok, {t: flags for t, flags in FLAGGED.items() if "normalized" not in flags})
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        tok.save(str(folder / "tokenizer.json"))
        return read(folder, tok, unk_token="[UNK]")


_USER = ("<b>", "--", "\n", "\n\n", "0,")
# Each returns a tokenizer and a function that encodes a list of texts with the original.
PLAIN = {
    "own_unigram": lambda: own("unigram"),
    "own_bpe": lambda: own("bpe"),
    "t5": lambda: original(
        "unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True
    ),
    "unigram": lambda: original("unigram", byte_fallback=True),
    "unigram_no_prefix": lambda: original("unigram", add_dummy_prefix=False),
    "unigram_suffix": lambda: original("unigram", treat_whitespace_as_suffix=True),
    "unigram_user": lambda: original("unigram", user_defined_symbols=_USER),
    "bpe": lambda: original("bpe", byte_fallback=True),
    "bpe_no_prefix": lambda: original("bpe", add_dummy_prefix=False),
    "bpe_suffix": lambda: original("bpe", treat_whitespace_as_suffix=True),
    "bpe_user": lambda: original("bpe", user_defined_symbols=_USER),
}
# The same for texts with special tokens.
SPECIAL = {
    **{
        f"json_{scheme}{'_alone' * alone}": functools.partial(converted, scheme, "bpe", alone)
        for scheme in ("legacy", "always", "first", "never", "gemma")
        for alone in (False, True)
    },
    "json_unigram_first": lambda: converted("first", "unigram"),
    "json_unigram_words": lambda: converted("words", "unigram", True),
    "byte_pair": lambda: byte_pair(None),
    "byte_pair_nfc": lambda: byte_pair("NFC"),
    "word_piece": word_piece,
}


def differences(kind, count, seed=0, graph=True):
    """Return the strings whose ids differ, a list of (string, list of id lists)."""
    special = kind in SPECIAL
    tok, reference = (SPECIAL if special else PLAIN)[kind]()
    pieces = NO_MARKS if kind in ("t5", "json_unigram_words") else PIECES
    found, size = [], 2000
    if graph:
        import tensorflow as tf

        spec = [tf.TensorSpec([None], tf.string)]
        plain = tf.function(tok.tokenize, spec)
        parsed = tf.function(lambda texts: tok.tokenize_prompt(texts, parse_special=True), spec)
    for begin in range(0, count, size):
        texts = strings(min(size, count - begin), f"{seed} {begin}", pieces)
        sides = [reference(texts), tok.encode_batch(texts, parse_special=special)]
        if graph:
            sides.append((parsed if special else plain)(texts).to_list())
        rows = zip(texts, *sides, strict=True)
        found += [(text, ids) for text, *ids in rows if any(row != ids[0] for row in ids)]
        if special and graph:
            rows = zip(texts, tok.encode_batch(texts), plain(texts).to_list(), strict=True)
            found += [(text, ids) for text, *ids in rows if ids[0] != ids[1]]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="default: all")
    parser.add_argument("--count", type=int, default=100_000, help="strings of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-graph", action="store_true", help="without TensorFlow")
    options = parser.parse_args()
    failed = False
    for kind in options.kinds or [*PLAIN, *SPECIAL]:
        began = time.monotonic()
        found = differences(kind, options.count, options.seed, not options.no_graph)
        seconds = time.monotonic() - began
        print(f"{kind}: {len(found)} of {options.count} differ ({seconds:.0f} s)", flush=True)
        for text, ids in sorted(found, key=lambda row: len(row[0]))[:3]:
            print(f"  {text!r}: {ids}")
        failed |= bool(found)
    sys.exit(failed)


if __name__ == "__main__":
    main()
