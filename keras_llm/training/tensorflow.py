"""Run the TensorFlow-specific parts of training: strategies, replicas, fused Adam."""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_llm.errors import InputError
from keras_llm.types import Dataset, Tensor


def sequential_loop(condition: Callable[..., Tensor], step: Callable[..., Any], values: Any) -> Any:
    """Run a while loop without overlapping iterations, to hold the tensors of one step only."""
    return tf.while_loop(condition, step, values, parallel_iterations=1)


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a tensor; sum the `tf.IndexedSlices` of an embedding."""
    return tf.convert_to_tensor(gradient)


def adam(
    variable: keras.Variable,
    averages: Sequence[keras.Variable],
    gradient: Tensor,
    rate: Tensor,
    iterations: Tensor,
    betas: Sequence[float],
    epsilon: float,
) -> None:
    """Update with the fused Adam op; see `optimizers._adam_in_one_pass`."""
    gradient, rate, step, beta_1, beta_2, epsilon = (
        tf.cast(x, variable.dtype) for x in (gradient, rate, iterations + 1, *betas, epsilon)
    )
    variable, momentum, velocity = (v.value.handle for v in (variable, *averages))
    tf.raw_ops.ResourceApplyAdam(
        var=variable,
        m=momentum,
        v=velocity,
        beta1_power=tf.pow(beta_1, step),
        beta2_power=tf.pow(beta_2, step),
        lr=rate,
        beta1=beta_1,
        beta2=beta_2,
        epsilon=epsilon,
        grad=gradient,
    )


def set_strategy(kind: str | None) -> None:
    """Set the global strategy; see `distribution.set_distribution`."""
    if kind is None:
        tf.distribute.experimental_set_strategy(None)
        return
    if kind == "multi_worker":
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
        if sum(len(cluster.get(job, [])) for job in ("chief", "worker")) < 2:
            raise InputError(
                "distribution multi_worker needs the environment variable TF_CONFIG with at least "
                "two workers and the index of this one; see docs/scaling.md."
            )
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = tf.distribute.MirroredStrategy()
    if strategy.num_replicas_in_sync < 2:
        raise InputError("distribution mirrored needs at least two devices; TensorFlow sees one.")
    tf.distribute.experimental_set_strategy(strategy)


def num_replicas() -> int:
    """Return the number of replicas; see `replicas.count`."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def in_replica() -> bool:
    """Return whether the caller runs in a replica of a strategy."""
    return tf.distribute.get_replica_context() is not None


def total(values: list[Tensor | None], name: str) -> list[Tensor | None]:
    """Sum tensors over replicas; see `replicas.total`."""
    context = tf.distribute.get_replica_context()
    if context is None:
        raise InputError(
            f"training.{name} must be called in each replica; loss scaling (mixed_float16) "
            "prevents this: use mixed_bfloat16."
        )
    present = [value for value in values if value is not None]
    sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if value is None else next(sums) for value in values]


def sharded_by_row(data: Dataset) -> Dataset:
    """Shard a dataset by rows; see `replicas.sharded_by_row`."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return data.with_options(options)


@contextlib.contextmanager
def after(values: Any) -> Iterator[None]:
    """Make operations with side effects wait for tensors; see `replicas.after`.

    If all operations waited, as with `tf.control_dependencies`, peak memory would be a fifth
    higher (docs/training_benchmark.md).
    """
    if tf.executing_eagerly():
        yield
        return
    graph = tf.compat.v1.get_default_graph()
    before = len(graph.get_operations())
    yield
    tensors = tf.nest.flatten(values, expand_composites=True)
    data = [value.op for value in tensors if tf.is_tensor(value)]
    for op in graph.get_operations()[before:]:
        if op.op_def.is_stateful and op.type != "ReadVariableOp":
            op._add_control_inputs(data)


def step_logs(logs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reshape the logs of a step so that Keras can average them over replicas.

    With several workers, Keras 3.15 averages along the first axis, which a scalar does not have.
    """
    if _other_workers() and in_replica():
        return {name: tf.reshape(value, (1,)) for name, value in logs.items()}
    return logs


def first_batch(iterator: Any) -> Any:
    """Return the part of the first batch that the first local replica gets.

    Keras 3.15 averages over replicas instead, which fails if their parts differ in size.
    """
    strategy = tf.distribute.get_strategy()
    for _, _, batches in iterator:
        return keras.tree.map_structure(
            lambda part: strategy.experimental_local_results(part)[0], next(batches)
        )


def read(variables: Iterable[keras.Variable]) -> list[np.ndarray]:
    """Return the values of variables; see `replicas.read`."""
    strategy = tf.distribute.get_strategy()
    arrays = []
    for variable in variables:
        if num_replicas() > 1 and variable.synchronization == "on_read":
            rows = strategy.run(lambda v: tf.convert_to_tensor(v.value)[None], args=(variable,))
            arrays.append(strategy.gather(rows, axis=0).numpy())
        else:
            arrays.append(np.array(keras.ops.convert_to_numpy(variable)))
    return arrays


def write(variables: Sequence[keras.Variable], arrays: Sequence[np.ndarray]) -> None:
    """Assign arrays to variables; see `replicas.write`."""

    def assign(variable, rows):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        variable.value.assign(tf.gather(rows, replica))

    for variable, array in zip(variables, arrays, strict=True):
        if num_replicas() > 1 and variable.synchronization == "on_read":
            tf.distribute.get_strategy().run(assign, args=(variable, tf.constant(array)))
        else:
            variable.assign(array)


def shape(variable: keras.Variable) -> list[int]:
    """Return the shape that `read` returns for a variable; see `replicas.shape`."""
    per_replica = num_replicas() > 1 and variable.synchronization == "on_read"
    return [*([num_replicas()] if per_replica else []), *variable.shape]


def is_chief() -> bool:
    """Return whether this worker writes files; see `replicas.is_chief`."""
    return tf.distribute.get_strategy().extended.should_checkpoint


def check_same(number: int, what: str) -> None:
    """Check that a number is the same on all workers; see `replicas.check_same`."""
    if not _other_workers():
        return
    strategy = tf.distribute.get_strategy()
    rows = strategy.run(lambda: tf.constant([number], tf.int64))
    numbers = strategy.gather(rows, axis=0).numpy().tolist()
    if len(set(numbers)) > 1:
        # Wait for the others: if a worker exits first, they report a lost worker instead.
        with contextlib.suppress(tf.errors.OpError):
            strategy.gather(rows, axis=0)
        raise InputError(f"{what} must be the same on all workers, got {numbers}.")


@contextlib.contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Raise InputError naming lost workers; see `replicas.naming_lost_workers`."""
    try:
        yield
    except tf.errors.OpError as error:
        lost = [name for name, address in _other_workers().items() if not _answers(address)]
        if not lost:
            raise
        raise InputError(
            f"lost {', '.join(lost)} during training; restart all workers, with training.Resume "
            "(--resume) to continue from the last checkpoint."
        ) from error


def _other_workers() -> dict[str, str]:
    """Return a dict of the names and addresses of all other workers."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    if resolver is None:
        return {}
    here = resolver.task_type, resolver.task_id
    return {
        f"{job} {index} ({address})": address
        for job, addresses in resolver.cluster_spec().as_dict().items()
        for index, address in enumerate(addresses)
        if (job, index) != here
    }


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def waiting_for(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Return a context whose operations start after a tensor has been computed."""
    return tf.control_dependencies([tensor])
