"""Prepare a run, train with `fit`, and write the model folder."""

import contextlib
import dataclasses
import importlib.util
import json
import math
import pathlib
import shutil
import sys

from keras_llm import interrupts
from keras_llm.errors import InputError, optional_packages
from keras_llm.files import atomic_file, atomic_folder, check_finished, check_free, check_writable

_BEST = "best.weights.h5"
_CHECKPOINTS = "checkpoints"
_KEPT = (_BEST, f"{_CHECKPOINTS}/step_*")
_EXPORTERS = {"litert": ["ai_edge_litert"], "litert_lm": ["ai_edge_litert", "litert_lm_builder"]}
_MOST_DROPPED = 0.05  # share of long rows above which a recipe warns


def prepare(options, *packages, pictures=True):
    """Check requirements before training, set the distribution strategy, and seed Keras.

    Args:
        options: `flags.Options`.
        *packages: modules that the recipe imports later.
        pictures: bool. Whether the recipe requires matplotlib for plots.

    Raises:
        InputError: if `out` exists, cannot be written or is the folder of an unfinished run; if a
            package is not installed; or if the distribution is not available.
    """
    check_free(options.out, options.overwrite)
    check_writable(options.out)
    if not (options.resume or options.overwrite):
        check_finished(options.out, _KEPT)
    import keras

    from keras_llm import training

    for kind in options.exports:
        for name in _EXPORTERS.get(kind, ()):
            with optional_packages(f"--export {kind}"):
                if importlib.util.find_spec(name) is None:
                    raise ModuleNotFoundError(name=name)
    for name in (*packages, *(["matplotlib"] if pictures else [])):
        if importlib.util.find_spec(name) is None:
            project = {"sklearn": "scikit-learn"}.get(name, name)
            raise InputError(f"this needs {project}: pip install {project}.")
    if options.distribution:
        training.set_distribution(options.distribution)
    if options.distribution == "jax_data":
        devices = len(keras.distribution.list_devices())
        even = not options.batch_size % devices
        options.check(("batch_size", even, f"a multiple of the {devices} devices"))
    keras.utils.set_random_seed(options.seed)


def load(folder, options_class):
    """Load the task of a run and the options that it was trained with."""
    import keras_llm

    task = keras_llm.load(folder)
    return task, model_options(options_class, task)


def model_options(options_class, task):
    """Return the options that a task was trained with.

    Options that the recipe does not have are ignored and reported: a changed copy of the recipe may
    add some.

    Raises:
        InputError: if the task does not record valid options.
    """
    recorded = task.metadata.get("options")
    names = [field.name for field in dataclasses.fields(options_class)]
    if not isinstance(recorded, dict) or "out" not in recorded:
        raise InputError("the model does not record the options of its recipe.")
    if unknown := sorted(set(recorded) - set(names)):
        recipe = task.metadata.get("recipe")
        say(f"ignored options of the model that the recipe {recipe} lacks: {', '.join(unknown)}")
    known = {name: recorded[name] for name in names if name in recorded}
    return options_class(**{**known, "smoke": False})


def optimizer(options, steps):
    """Return the optimizer with linear warmup, learning rate decay and gradient clipping.

    Args:
        options: `flags.Options`.
        steps: int, the total number of training steps.
    """
    from keras_llm import training

    schedule = training.WarmupDecay(
        options.learning_rate, steps, round(options.warmup * steps), options.decay
    )
    decay = options.weight_decay
    if options.optimizer == "adamw":
        return training.AdamW(schedule, weight_decay=decay, beta_2=0.95, global_clipnorm=1.0)
    return training.Muon(
        schedule,
        weight_decay=decay,
        adam_weight_decay=decay,
        adam_beta_2=0.95,
        adam_lr_ratio=3,
        ns_steps=4,
        global_clipnorm=1.0,
        exclude_layers=["logits", "head/"],
    )


def compiled(options, model, steps, **arguments):
    """Return a compiled trainer with the optimizer of the options.

    Args:
        options: `flags.Options`.
        model: a `tasks.Task`, or a `training.Trainer` that is not compiled.
        steps: int, the total number of training steps.
        **arguments: other arguments of `keras.Model.compile`.
    """
    import keras

    from keras_llm import tasks

    if isinstance(model, tasks.Task):
        return model.trainer(optimizer(options, steps), **arguments)
    jit_compile = keras.backend.backend() == "jax"  # JAX is slow without it
    model.compile(optimizer(options, steps), jit_compile=jit_compile, **arguments)
    return model


@contextlib.contextmanager
def start(options):
    """Yield a `Run`. When it is complete, rename its folder to `out`, and export the model.

    An interrupted run keeps its best weights and checkpoints. With several workers, only the chief
    writes the folder.
    """
    from keras_llm.training.distribution import replicas

    if not replicas.is_chief():
        yield Run(pathlib.Path(f"{options.out}.partial"), options)
        return
    with atomic_folder(options.out, options.overwrite, _KEPT, options.resume) as folder:
        run = Run(folder, options)
        try:
            yield run
        except BaseException:
            if (folder / _BEST).is_file():
                say(f"stopped; the best weights so far are {folder / _BEST}")
            if any((folder / _CHECKPOINTS).glob("step_*")):
                say("run the same command with --resume to continue from the last checkpoint")
            raise
    if options.exports:
        run.export()


class Run:
    """A run of a recipe, from `fit` to the model folder.

    Args:
        folder: path of the folder; it must exist when training begins.
        options: `flags.Options`.
    """

    def __init__(self, folder, options):
        self.folder, self.options = folder, options

    def fit(
        self, model, train_data, validation_data, unit="rows", per_step=None, metrics=None, **tools
    ):
        """Train with a progress bar, TensorBoard and a plot of the loss.

        The model ends with the weights that have the lowest held-out loss.

        Args:
            model: a `tasks.Task`, or a `training.Trainer` that is not compiled.
            train_data: `tf.data.Dataset` of the batches of all epochs, with known cardinality.
            validation_data: `tf.data.Dataset`.
            unit: str, the unit of the speed; perplexity is shown for "tokens".
            per_step: int, units per batch. Defaults to `batch_size`.
            metrics: list of Keras metrics; defaults to those of the task.
            **tools: passed to `training.TensorBoard`, such as `sample`. `attention` is ignored
                with a distribution.

        Returns:
            A dict: `parameters`, `steps`, `seconds`, `<unit>_per_second` and `history`, the losses
            [step, training, held out].

        Raises:
            InputError: if the held-out loss is not finite.
            SystemExit: on all workers except the chief, after training.
        """
        import keras

        from keras_llm import training
        from keras_llm.training.distribution import replicas

        options, folder = self.options, self.folder
        replicas.check_same(options.seed, "--seed")  # waits for the chief, which creates `folder`
        steps, per_step = len(train_data), per_step or options.batch_size
        trainer = compiled(options, model, steps, **({"metrics": metrics} if metrics else {}))
        network = trainer.trained
        interval = max(1, steps // (options.epochs * options.evaluations))
        intervals = steps // interval
        say(f"{network.count_params():,} parameters, {intervals * interval:,} steps")
        best = training.BestWeights(folder / _BEST, model=network)
        resume = training.Resume(
            folder / _CHECKPOINTS,
            every=options.checkpoint_steps,
            identity={"options": options.model_fields},
            callbacks=[best],
        )
        if options.distribution == "jax_data":
            train_data, validation_data = _static_batches(options, train_data, validation_data)
        train_data, chief_callbacks = resume.data(train_data), []
        if replicas.is_chief():
            say(f"to monitor the run: tensorboard --logdir {pathlib.Path(options.out).parent}")
            if options.distribution:
                tools.pop("attention", None)
            board = training.TensorBoard(folder / "logs", per_step, unit=unit, **tools)
            progress = training.ProgressBar(intervals * interval, per_step, unit=unit)
            chief_callbacks = [board, progress]
            if not options.distribution:
                train_data = board.data(train_data)
        finite = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: _check_finite(logs["val_loss"])
        )
        interruptible = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: interrupts.check()
        )
        trainer.fit(
            train_data,
            steps_per_epoch=interval,
            epochs=intervals,
            validation_data=validation_data,
            shuffle=False,
            verbose=0,
            callbacks=[best, *chief_callbacks, finite, resume, interruptible],
        )
        if not replicas.is_chief():
            say("done; the first worker writes the model")
            sys.exit()
        if options.distribution:
            training.set_distribution(None)
        network.load_weights(best.path)
        losses = zip(resume.history["loss"], resume.history["val_loss"], strict=True)
        rows = [[(i + 1) * interval, *map(float, pair)] for i, pair in enumerate(losses)]
        if has_pictures():
            from keras_llm.recipes.common import pictures

            pictures.loss_curve(rows, folder / "loss.png")
        return {
            "parameters": network.count_params(),
            "steps": intervals * interval,
            "seconds": round(resume.seconds, 1),
            f"{unit}_per_second": round(intervals * interval * per_step / resume.seconds),
            "history": rows,
        }

    def save(self, task, metrics, card):
        """Write the model, its metrics and its model card.

        Args:
            task: a `tasks.Task`.
            metrics: dict for metrics.json; an export adds `artifacts`.
            card: str for README.md.
        """
        self.task, self.metrics = task, metrics
        task.write(self.folder)
        (self.folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
        (self.folder / "README.md").write_text(card, "utf-8")
        shutil.rmtree(self.folder / _CHECKPOINTS)
        (self.folder / _BEST).unlink()  # last, so that the weights are not lost if writing fails

    def export(self):
        """Export the formats of `--export`; add sizes and parity to metrics.json and the card."""
        task = getattr(self.task, "generator", self.task)  # exports do not rank answers
        out = pathlib.Path(self.options.out)
        paths = {
            "saved_model": out / "exports" / "serving" / out.name,
            "litert": out / "exports" / f"{out.name}.tflite",
            "litert_lm": out / "exports" / f"{out.name}.litertlm",
        }
        artifacts = self.metrics["artifacts"] = {}
        lines = ["", "| artifact | bytes | parity with Keras |", "|---|---|---|"]
        for kind in self.options.exports:
            say(f"exporting {paths[kind]}")
            report = task.export(kind, paths[kind])
            size, parity = report["bytes"]["total"], report["parity"]
            artifacts[kind] = {"bytes": size, "parity": parity}
            cell = ", ".join(f"{name.replace('_', ' ')} {v:.3g}" for name, v in parity.items())
            lines.append(f"| `{paths[kind].relative_to(out)}` | {size:,} | {cell} |")
        card = (out / "README.md").read_text("utf-8") + "\n".join(lines) + "\n"
        for name, text in (
            ("metrics.json", json.dumps(self.metrics, indent=2) + "\n"),
            ("README.md", card),
        ):
            with atomic_file(out / name, overwrite=True) as partial:
                partial.write_text(text, "utf-8")


def _check_finite(held_out_loss):
    if not math.isfinite(held_out_loss):
        raise InputError("the held-out loss is not finite; try a lower --learning-rate.")


def _static_batches(options, train_data, held_out):
    """Set the static batch size of data sets, which splitting over JAX devices requires.

    The size is that of the first training batch; smaller held-out batches are dropped.

    Raises:
        InputError: if no held-out batch has this size.
    """
    import tensorflow as tf

    def rows(parts):
        return tf.shape(tf.nest.flatten(parts)[0])[0]

    def shaped(*parts):
        return tf.nest.map_structure(
            lambda part: tf.ensure_shape(part, [count, *part.shape[1:]]), parts
        )

    count = int(rows(next(iter(train_data))))
    whole = held_out.filter(lambda *parts: rows(parts) == count).map(shaped)
    has_some = next(iter(whole), None) is not None
    options.check(("batch_size", has_some, "at most the number of held-out rows with jax_data"))
    return train_data.map(shaped), whole


def say_unread(path, columns=None):
    """Report the files of a folder that are not read; see `data.unread_files`."""
    from keras_llm import data

    if files := data.unread_files(path, columns):
        example = files[0].name
        say(f"not read because of their names: {len(files):,} files of {path}, e.g. {example}")


def reasons(dropped):
    """Format a dict of dropped counts by reason."""
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "none"


def warn_of_long(options, lengths):
    """Warn on stderr if more than 5 % of the rows are longer than `max_length`.

    Args:
        options: options with `max_length`.
        lengths: list of ints, the tokens of the rows.
    """
    longest = options.max_length
    share = sum(length > longest for length in lengths) / max(len(lengths), 1)
    if share > _MOST_DROPPED:
        say(
            f"warning: {share:.0%} of the rows are longer than --max-length {longest} and are "
            f"dropped or cut; {percentiles(lengths)} tokens."
        )


def percentiles(lengths):
    """Format percentiles of lengths, such as "50 % have at most 31, ... 100 % at most 900"."""
    import numpy as np

    shares = (50, 90, 95, 99, 100)
    values = np.percentile(lengths, shares, method="higher")
    parts = [
        f"{share} % have at most {value:,}" for share, value in zip(shares, values, strict=True)
    ]
    return ", ".join(parts)


def say(message):
    """Print a line of progress to stderr."""
    print(message, file=sys.stderr, flush=True)


def has_pictures():
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None
