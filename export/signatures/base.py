"""What all graphs for servers share."""

import tensorflow as tf

from keras_llm.errors import ExportError

STRINGS = tf.TensorSpec((None,), tf.string)
INTS = tf.TensorSpec((None,), tf.int32)
FLOATS = tf.TensorSpec((None,), tf.float32)


def save(module, folder):
    """Write a module and its signatures as a SavedModel; ExportError if that cannot be done."""
    signatures = module.signatures()
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures)
    except tf.errors.OpError as error:
        raise ExportError(f"{folder} cannot be written: {error.message}") from error
    return list(signatures)


class GraphModule(tf.Module):
    """What a SavedModel of a task holds: weights, tokenizer, signatures.

    Attributes:
        main: str, the signature that is `serving_default` too.
    """

    main = None

    def __init__(self, task):
        super().__init__()
        self._task = [task]  # in a list, so that tf.Module does not look inside
        self.weights = [variable.value for variable in task.model.variables]
        self.tokenizer_resources = task.tokenizer.graph_resources()

    @property
    def task(self):
        """The task."""
        return self._task[0]

    def signatures(self):
        """Signature name -> concrete function, `serving_default` among them."""
        functions = self.functions()
        return {"serving_default": functions[self.main], **functions}

    def functions(self):
        """Signature name -> concrete function."""
        raise NotImplementedError


def traced(function, **specs):
    """The concrete function of a Python function; its arguments have the names of the specs."""
    named = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in specs.items()}
    return tf.function(function).get_concrete_function(**named)


def check(condition, message):
    """An operation that fails with InvalidArgument and a message."""
    return tf.debugging.Assert(condition, [message])


def clean(name, strings):
    """Strings that may be any bytes -> strings (B,) of UTF-8, the replacement character U+FFFD
    for what is none; an error if there are none or one is empty."""
    checks = [
        check(tf.size(strings) > 0, f"{name} must not be an empty list"),
        check(tf.reduce_all(tf.strings.length(strings) > 0), f"{name} must not be empty"),
    ]
    with tf.control_dependencies(checks):
        return utf8(strings)


def utf8(strings):
    """Strings of any bytes -> strings of UTF-8, U+FFFD for each part that is none."""
    return tf.strings.unicode_transcode(strings, "UTF-8", "UTF-8", errors="replace")


def lengths_of(ids):
    """The lengths of a ragged tensor's rows, int32 (B,)."""
    return tf.cast(ids.row_lengths(), tf.int32)


def as_rows(values, rows):
    """A setting of length 1 or B -> (B,)."""
    return tf.broadcast_to(values, tf.reshape(rows, (1,)))


# Setting of generation -> what it may be, and the rule in words.
_RULES = {
    "max_new_tokens": (lambda x: x > 0, "must be positive"),
    "temperature": (lambda x: (x >= 0) & tf.math.is_finite(x), "must be a number >= 0"),
    "top_k": (lambda x: x >= 0, "must be >= 0"),
    "top_p": (lambda x: (x > 0) & (x <= 1), "must be in (0, 1]"),
    "seed": (tf.ones_like, ""),
}
SETTINGS = {
    "max_new_tokens": INTS,
    "temperature": FLOATS,
    "top_k": INTS,
    "top_p": FLOATS,
    "seed": INTS,
}


def checked_settings(rows, of, settings):
    """Checks of settings of generation that run before what depends on them.

    Args:
        rows: int32 scalar, B.
        of: str, the input that has a row for each.
        settings: dict of name to tensor, as in `SETTINGS`.
    """
    checks = []
    for name, value in settings.items():
        checks.append(
            check(
                (tf.size(value) == 1) | (tf.size(value) == rows),
                f"{name} must have length 1 or that of {of}",
            )
        )
        holds, rule = _RULES[name]
        if rule:
            checks.append(check(tf.reduce_all(holds(value)), f"{name} {rule}"))
    return checks
