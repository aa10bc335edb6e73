"""A child process of `test_streaming`: a corpus to batches, with a limit on memory.

    stream_in_little_memory.py FOLDER MEBIBYTES

The limit is that many more than what is in use when TensorFlow has begun to work. Prints the sizes
of what was read as JSON; then reads all at once, and prints that too if it gets so far.
"""

import functools
import itertools
import json
import pathlib
import resource
import sys

from keras_llm import data, tokenizers


def in_use():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) * 1024


def batches(ids):
    """Batches from the middle of two kinds of data sets."""
    shape = {"sequence_length": 128, "batch_size": 8, "bos_id": tok.bos_id, "pad_id": tok.pad_id}
    packed = data.packed_dataset(ids, **shape, seed=1, segments=True)
    spans = data.span_corruption_dataset(ids, range(4, 24), **shape, eos_id=tok.eos_id, seed=1)
    for dataset in (packed, spans):
        next(iter(dataset.skip(len(dataset) // 2)))
    return len(packed)


folder, mebibytes = sys.argv[1:]
read = functools.partial(data.stream_texts, folder)
known = list(itertools.islice(read(), 600))
tok = tokenizers.SentencePiece.train(known, 600, "bpe")
batches(data.encode_documents(known, tok))  # starts threads, traces graphs
before = in_use()
resource.setrlimit(resource.RLIMIT_DATA, (before + int(mebibytes) * 2**20, -1))
train, held_out, _ = data.split_stream(read, 0.01)
ids = data.encode_documents(train, tok, pathlib.Path(folder).with_name("tokens.npy"))
found = {"tokens": len(ids), "steps": batches(ids), "held out": len(list(held_out))}
print(json.dumps(found), flush=True)
train, held_out = data.split_documents(data.read_texts(folder), 0.01)
print(len(data.encode_documents(train, tok)))
