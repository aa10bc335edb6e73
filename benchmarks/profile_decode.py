"""Profile text generation with TensorFlow's profiler, by kind of operation.

    python benchmarks/profile_decode.py --shape SmolLM2-135M --batch 8

Uses the shapes of generation.py: 32 prompt tokens, 32 new tokens, greedy, float32, with XLA.
"""

import argparse
import collections
import pathlib
import tempfile
import time

import generation
import numpy as np

# Prefixes of XLA's operation names on CPU; the first match determines the kind. `dot` and its
# fusions are XLA's own matrix products; `MatMul` are calls of a library, used for more rows.
KINDS = {
    "matrix products": ("dot", "MatMul", "copy_dot", "copy_pad", "ynn"),
    "cache writes": ("wrapped_scatter", "bitcast_copy", "copy_bitcast", "copy"),
    "token selection": ("wrapped_reduce-window", "iota_reduce", "cond", "wrapped_sort"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=list(generation.SHAPES), default="6 layers, width 256")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new", type=int, default=32, help="number of new tokens")
    options = parser.parse_args()

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(generation.THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(generation.THREADS)
    shape = generation.SHAPES[options.shape]
    run = generation.ours(shape)
    ids = np.random.default_rng(0).integers(3, 400, (options.batch, 32)).astype("int32")
    run(ids, options.new)  # compiles
    with tempfile.TemporaryDirectory() as folder:
        # Do not trace Python: there are few calls, and tracing them costs more than they do.
        profiler_options = tf.profiler.experimental.ProfilerOptions(python_tracer_level=0)
        with tf.profiler.experimental.Profile(folder, profiler_options):
            start = time.perf_counter()
            run(ids, options.new)
            wall = 1000 * (time.perf_counter() - start)
        times = busy(next(pathlib.Path(folder).rglob("*.xplane.pb")))
    total = sum(times.values())
    print(f"{options.shape}, batch {options.batch}, {options.new} tokens: {wall:,.0f} ms")
    print(f"XLA operations: {total:,.0f} ms on {generation.THREADS} threads")
    for kind, milliseconds in times.most_common():
        print(f"{milliseconds:9,.1f} ms {milliseconds / total:6.1%}  {kind}")


def busy(path):
    """Return the milliseconds of XLA operations by kind, a Counter, from a trace (.xplane.pb).

    An operation such as a loop may contain others; their time is subtracted from its own.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    times = collections.Counter()
    for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
        of_xla = {key for key, stat in plane.stat_metadata.items() if stat.name == "hlo_op"}
        for line in plane.lines:
            events = [e for e in line.events if of_xla & {stat.metadata_id for stat in e.stats}]
            for key, picoseconds in own(events):
                times[kind_of(plane.event_metadata[key].name)] += picoseconds / 1e9
    return times


def own(events):
    """Yield (name, self time) of each event of a thread; events are nested or disjoint."""
    open_events = []
    for event in sorted(events, key=lambda event: (event.offset_ps, -event.duration_ps)):
        while open_events and open_events[-1][1] <= event.offset_ps:
            name, _, left = open_events.pop()
            yield name, left
        if open_events:
            open_events[-1][2] -= event.duration_ps
        end = event.offset_ps + event.duration_ps
        open_events.append([event.metadata_id, end, event.duration_ps])
    for name, _, left in open_events:
        yield name, left


def kind_of(name):
    for kind, prefixes in KINDS.items():
        if name.startswith(prefixes):
            return kind
    return "other (norms, rotary embeddings, softmax, activations, sums)"


if __name__ == "__main__":
    main()
