"""Child process of `test_streaming`: make batches of a corpus under a memory limit.

    stream_with_memory_limit.py FOLDER MEBIBYTES

The limit is MEBIBYTES above what is in use once TensorFlow is warmed up. Prints the sizes of what
was streamed as JSON. Then reads the whole corpus at once, and prints its size if that succeeds.
"""

import functools
import itertools
import json
import pathlib
import resource
import sys

from keras_llm import data, tokenizers


def memory_in_use():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) * 1024


def batches(ids):
    """Read a batch from the middle of two kinds of data sets; return the number of steps."""
    shape = {"sequence_length": 128, "batch_size": 8, "bos_id": tok.bos_id, "pad_id": tok.pad_id}
    packed = data.packed_dataset(ids, **shape, seed=1, segments=True)
    spans = data.span_corruption_dataset(ids, range(4, 24), **shape, eos_id=tok.eos_id, seed=1)
    for dataset in (packed, spans):
        next(iter(dataset.skip(len(dataset) // 2)))
    return len(packed)


folder, mebibytes = sys.argv[1:]
read = functools.partial(data.stream_texts, folder)
sample = list(itertools.islice(read(), 600))
tok = tokenizers.SentencePiece.train(sample, 600, "bpe")
batches(data.encode_documents(sample, tok))  # starts threads, traces graphs
before = memory_in_use()
resource.setrlimit(resource.RLIMIT_DATA, (before + int(mebibytes) * 2**20, -1))
train, held_out, _ = data.split_stream(read, 0.01)
ids = data.encode_documents(train, tok, pathlib.Path(folder).with_name("tokens.npy"))
sizes = {"tokens": len(ids), "steps": batches(ids), "held out": len(list(held_out))}
print(json.dumps(sizes), flush=True)
train, held_out = data.split_documents(data.read_texts(folder), 0.01)
print(len(data.encode_documents(train, tok)))
