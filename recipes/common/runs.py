"""Define the common options of recipes, run `fit`, and write the model folder."""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import shutil
import sys
from typing import Literal

from keras_llm import interrupts
from keras_llm.errors import InputError
from keras_llm.files import atomic_folder, check_free

_BEST = "best.weights.h5"
_CHECKPOINTS = "checkpoints"
_KEPT = (_BEST, f"{_CHECKPOINTS}/step_*")
_DISTRIBUTIONS = (None, "mirrored", "multi_worker", "jax_data", "jax_model")
_EXPORTS = ("saved_model", "litert", "litert_lm")


@dataclasses.dataclass
class Options:
    """Options of every recipe."""

    out: str
    """Output folder of the trained model; must not exist."""
    corpus: str = ""
    """Name of a corpus; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own file or folder, hf:NAME:SPLIT or tfds:NAME:SPLIT, instead of a corpus."""
    held_out: float = 0.1
    """Fraction of the data to hold out."""
    preset: str = ""
    """Model preset."""
    vocabulary_size: int = 8000
    """Vocabulary size."""
    batch_size: int = 32
    """Rows per batch."""
    epochs: int = 1
    """Training epochs."""
    evaluations: int = 4
    """Held-out evaluations, loss curve points and checkpoints per epoch."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the matrices of the blocks: slower steps, fewer of them from scratch."""
    learning_rate: float = 1e-3
    """Peak learning rate, after linear warmup."""
    warmup: float = 0.05
    """Fraction of the training steps for warmup."""
    decay: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant"] = "cosine"
    """Learning rate schedule after warmup."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices."""
    seed: int = 0
    """Seed of the split, the weights and the data order."""
    export: str = ""
    """Formats to export to the folder `exports` of --out, such as "saved_model,litert"."""
    checkpoint_steps: int = 500
    """Steps between two checkpoints for --resume."""
    resume: bool = False
    """Continue a run that was stopped or killed; the final model is the same."""
    distribution: Literal["mirrored", "multi_worker", "jax_data", "jax_model"] | None = None
    """Train on several devices: of this machine, or of the workers in TF_CONFIG; or, with
    KERAS_BACKEND=jax, split the batch or the model over devices. See docs/scaling.md."""
    overwrite: bool = False
    """Replace an existing --out."""
    json: bool = False
    """Print the metrics as one JSON object."""
    smoke: bool = False
    """Run the whole pipeline with a tiny model and little data in under a minute."""

    def __post_init__(self):
        self.check(
            ("held_out", 0 < self.held_out < 1, "in (0, 1)"),
            ("vocabulary_size", self.vocabulary_size > 0, "a positive int"),
            ("batch_size", self.batch_size > 0, "a positive int"),
            ("epochs", self.epochs > 0, "a positive int"),
            ("evaluations", self.evaluations > 0, "a positive int"),
            ("checkpoint_steps", self.checkpoint_steps > 0, "a positive int"),
            ("learning_rate", self.learning_rate > 0, "> 0"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("warmup", self.warmup or self.decay != "inverse_sqrt", "> 0 with inverse_sqrt"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("seed", self.seed >= 0, ">= 0"),
            ("export", set(self.exports) <= set(_EXPORTS), f"one or more of {', '.join(_EXPORTS)}"),
            (
                "distribution",
                self.distribution in _DISTRIBUTIONS,
                f"one of {', '.join(_DISTRIBUTIONS[1:])}",
            ),
            (
                "export",
                not (self.exports and self.distribution),
                "empty with --distribution (run `keras-llm export` on the trained model)",
            ),
        )

    @property
    def exports(self):
        """The formats to export, a list of str."""
        return [name.strip() for name in self.export.split(",") if name.strip()]

    @property
    def source(self):
        """The data source, for a model card."""
        return f"`{self.data}`" if self.data else f"corpus `{self.corpus}`"

    @property
    def of_the_model(self):
        """The options that the model depends on, a dict."""
        excluded = ("out", "resume", "overwrite", "json", "checkpoint_steps", "export")
        row = dataclasses.asdict(self)
        return {name: value for name, value in row.items() if name not in excluded}

    def check(self, *rules):
        """Check rules (option name, whether it is valid, what is valid).

        Raises:
            InputError: if a rule does not hold, naming the option's flag.
        """
        for name, ok, rule in rules:
            if not ok:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} must be {rule}, got {getattr(self, name)!r}.")


def prepare(options, *packages, pictures=True):
    """Check requirements before training, set the distribution strategy, and seed Keras.

    Args:
        options: `Options`.
        *packages: modules that the recipe imports later.
        pictures: bool. Whether the recipe requires matplotlib for plots.

    Raises:
        InputError: if `out` exists, a package is not installed, or the distribution is not
            available.
    """
    import keras

    from keras_llm import training

    check_free(options.out, options.overwrite)
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


def optimizer(options, steps):
    """Return the optimizer with linear warmup, learning rate decay and gradient clipping.

    Args:
        options: `Options`.
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


def compile_trainer(options, trainer, steps, loss=None, **measures):
    """Compile a `training.Trainer` with the optimizer of the options.

    Args:
        options: `Options`.
        trainer: the `training.Trainer`.
        steps: int, the total number of training steps.
        loss, **measures: see `keras.Model.compile`.
    """
    import keras

    jit_compile = keras.backend.backend() == "jax"  # JAX is slow without it
    trainer.compile(optimizer(options, steps), loss, jit_compile=jit_compile, **measures)


def token_trainer(options, model, steps, pad_id):
    """Return a compiled `LanguageModelTrainer` for a model that predicts tokens.

    Args:
        options: `Options`.
        model: a model from `causal_lm`, `seq2seq` or `masked_lm`.
        steps: int, the total number of training steps.
        pad_id: int. Targets with this value are ignored.
    """
    from keras_llm import training

    trainer = training.LanguageModelTrainer(model, ignore_id=pad_id)
    compile_trainer(options, trainer, steps)
    return trainer


@contextlib.contextmanager
def model_folder(options):
    """Yield a folder that is renamed to `out` when it is complete.

    An interrupted run keeps its best weights and checkpoints. With several workers, only the chief
    writes the folder.
    """
    from keras_llm.training.distribution import replicas

    if not replicas.is_chief():
        yield pathlib.Path(f"{options.out}.partial")
        return
    with atomic_folder(options.out, options.overwrite, _KEPT, options.resume) as folder:
        try:
            yield folder
        except BaseException:
            if (folder / _BEST).is_file():
                say(f"stopped; the best weights so far are {folder / _BEST}")
            if any((folder / _CHECKPOINTS).glob("step_*")):
                say("run the same command with --resume to continue from the last checkpoint")
            raise


def fit(folder, options, model, train_data, validation_data, unit="rows", per_step=None, **tools):
    """Fit a compiled model with a progress bar, TensorBoard and a plot of the loss.

    The model ends with the weights that have the lowest held-out loss.

    Args:
        folder: path from `model_folder`.
        options: `Options`.
        model: a compiled `training.Trainer`; its inner model is trained.
        train_data: `tf.data.Dataset` of the batches of all epochs, with known cardinality.
        validation_data: `tf.data.Dataset`.
        unit: str, the unit of the speed; perplexity is shown for "tokens".
        per_step: int, units per batch. Defaults to `batch_size`.
        **tools: passed to `training.TensorBoard`, such as `sample`. `attention` is ignored with a
            distribution.

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

    replicas.check_same(options.seed, "--seed")  # waits for the chief, which creates `folder`
    interruptible = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: interrupts.check()
    )
    steps, per_step = len(train_data), per_step or options.batch_size
    interval = max(1, steps // (options.epochs * options.evaluations))
    intervals = steps // interval
    kept = model.trained
    best = training.BestWeights(folder / _BEST, model=kept)
    resume = training.Resume(
        folder / _CHECKPOINTS,
        every=options.checkpoint_steps,
        identity={"options": options.of_the_model},
        callbacks=[best],
    )
    if options.distribution == "jax_data":
        train_data, validation_data = _even(options, train_data, validation_data)
    train_data, watching = resume.data(train_data), []
    if replicas.is_chief():
        say(f"to monitor the run: tensorboard --logdir {pathlib.Path(options.out).parent}")
        if options.distribution:
            tools.pop("attention", None)
        board = training.TensorBoard(folder / "logs", per_step, unit=unit, **tools)
        watching = [board, training.ProgressBar(intervals * interval, per_step, unit=unit)]
        if not options.distribution:
            train_data = board.data(train_data)
    model.fit(
        train_data,
        steps_per_epoch=interval,
        epochs=intervals,
        validation_data=validation_data,
        shuffle=False,
        verbose=0,
        callbacks=[best, *watching, resume, interruptible],
    )
    if not replicas.is_chief():
        say("done; the first worker writes the model")
        sys.exit()
    if options.distribution:
        training.set_distribution(None)
    seconds, history = resume.seconds, resume.history
    if not best.path.is_file():
        raise InputError("the held-out loss is not finite; try a lower --learning-rate.")
    kept.load_weights(best.path)
    losses = zip(history["loss"], history["val_loss"], strict=True)
    rows = [[(i + 1) * interval, *map(float, pair)] for i, pair in enumerate(losses)]
    if has_pictures():
        from keras_llm.recipes.common import pictures

        pictures.loss_curve(rows, folder / "loss.png")
    return {
        "parameters": kept.count_params(),
        "steps": intervals * interval,
        "seconds": round(seconds, 1),
        f"{unit}_per_second": round(intervals * interval * per_step / seconds),
        "history": rows,
    }


def _even(options, train_data, held_out):
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


def write(folder, task, metrics, card):
    """Write the model, its metrics and its model card to the folder from `model_folder`.

    Args:
        folder: path.
        task: a `tasks.Task`.
        metrics: dict for metrics.json.
        card: str for README.md.
    """
    task.write(folder)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    (folder / "README.md").write_text(card, "utf-8")
    shutil.rmtree(folder / _CHECKPOINTS)
    (folder / _BEST).unlink()  # last, so that the weights are not lost if writing fails


def model_options(options_class, task):
    """Return the options that a task was trained with."""
    return options_class(**{**task.metadata["options"], "smoke": False})


def say_unread(path, columns=None):
    """Report the files of a folder that are not read; see `data.unread_files`."""
    from keras_llm import data

    if files := data.unread_files(path, columns):
        example = files[0].name
        say(f"not read because of their names: {len(files):,} files of {path}, e.g. {example}")


def reasons(dropped):
    """Format a dict of dropped counts by reason."""
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "none"


def say(message):
    """Print a line of progress to stderr."""
    print(message, file=sys.stderr, flush=True)


def has_pictures():
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None
