"""What the recipes share: options, the fit and the model folder."""

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
    """What every recipe can be told."""

    out: str
    """Folder for the trained model; must not exist."""
    corpus: str = ""
    """A corpus by name; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own file or folder, hf:NAME:SPLIT or tfds:NAME:SPLIT, instead of a corpus."""
    held_out: float = 0.1
    """Share that is held out."""
    preset: str = ""
    """Shape of the model."""
    vocabulary_size: int = 8000
    """Tokens in the vocabulary."""
    batch_size: int = 32
    """Rows in a batch."""
    epochs: int = 1
    """Passes over the training data."""
    evaluations: int = 4
    """Held-out evaluations, points of the loss curve and checkpoints in each pass."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the matrices of the blocks: more to compute, fewer steps from scratch."""
    learning_rate: float = 1e-3
    """Peak learning rate; it warms up linearly."""
    warmup: float = 0.05
    """Share of the training that warms up."""
    decay: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices."""
    seed: int = 0
    """Seed of the split, the weights and the order of the data."""
    export: str = ""
    """What to export in the end, e.g. "saved_model,litert", into the folder `exports` of --out."""
    checkpoint_steps: int = 500
    """Steps between two checkpoints that --resume can go on from."""
    resume: bool = False
    """Go on with a run that was stopped or killed; the same options give the same model."""
    distribution: Literal["mirrored", "multi_worker", "jax_data", "jax_model"] | None = None
    """Train on several devices: of this machine, or of the workers that TF_CONFIG lists; or, with
    KERAS_BACKEND=jax, each with a part of the batch or of the model. See docs/scaling.md."""
    overwrite: bool = False
    """Replace what is at --out."""
    json: bool = False
    """Print the measures as one JSON object."""
    smoke: bool = False
    """A tiny model on a little data, to try the whole way in under a minute."""

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
            ("export", set(self.exports) <= set(_EXPORTS), f"of {', '.join(_EXPORTS)}"),
            (
                "distribution",
                self.distribution in _DISTRIBUTIONS,
                f"of {', '.join(_DISTRIBUTIONS[1:])}",
            ),
            (
                "export",
                not (self.exports and self.distribution),
                "left out with --distribution (run `keras-llm export` on the trained model)",
            ),
        )

    @property
    def exports(self):
        """What to export, a list of str."""
        return [name.strip() for name in self.export.split(",") if name.strip()]

    @property
    def source(self):
        """Where the data comes from, for a model card."""
        return f"`{self.data}`" if self.data else f"corpus `{self.corpus}`"

    @property
    def of_the_model(self):
        """The options that a model depends on, a dict."""
        elsewhere = ("out", "resume", "overwrite", "json", "checkpoint_steps", "export")
        row = dataclasses.asdict(self)
        return {name: value for name, value in row.items() if name not in elsewhere}

    def check(self, *rules):
        """InputError naming the flag of the first rule (name, whether it holds, what is right)
        that does not hold."""
        for name, ok, rule in rules:
            if not ok:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} must be {rule}, got {getattr(self, name)!r}.")


def prepare(options, *packages, pictures=True):
    """Refuse what would be refused only after the training, set the distribution, and seed Keras.

    Args:
        options: `Options`.
        *packages: modules that the recipe imports later.
        pictures: bool. Whether it is to leave some.

    Raises:
        InputError: if something is at `out`, a package is not installed, or the distribution
            cannot be.
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
    """The options' optimizer with linear warm-up, their decay and clipped gradients.

    Args:
        options: `Options`.
        steps: int, batches of the whole training.
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
    """Compile a `training.Trainer` with the options' optimizer; on JAX, which is slow otherwise,
    its steps are compiled by XLA.

    Args:
        options: `Options`.
        trainer: the `training.Trainer`.
        steps: int, batches of the whole training.
        loss, **measures: as of `keras.Model.compile`.
    """
    import keras

    by_xla = keras.backend.backend() == "jax"
    trainer.compile(optimizer(options, steps), loss, jit_compile=by_xla, **measures)


def token_trainer(options, model, steps, pad_id):
    """A compiled `LanguageModelTrainer` of a model that predicts tokens.

    Args:
        options: `Options`.
        model: a model from `causal_lm`, `seq2seq` or `masked_lm`.
        steps: int, batches of the whole training.
        pad_id: int, targets that do not count.
    """
    from keras_llm import training

    trainer = training.LanguageModelTrainer(model, ignore_id=pad_id)
    compile_trainer(options, trainer, steps)
    return trainer


@contextlib.contextmanager
def model_folder(options):
    """The folder that becomes `out` when it is whole; a run that stops keeps its best weights, and
    checkpoints that it can go on from. The first of several workers writes it."""
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
                say("the same command with --resume goes on from the last checkpoint")
            raise


def fit(folder, options, model, train_data, validation_data, unit="rows", per_step=None, **tools):
    """Fit a compiled model with progress, TensorBoard and a picture of the loss; it is left with
    the weights that were best on held-out data.

    Args:
        folder: path from `model_folder`.
        options: `Options`.
        model: a compiled `training.Trainer`, whose model inside counts.
        train_data: `tf.data.Dataset` of a known number of batches, those of all epochs.
        validation_data: `tf.data.Dataset`.
        unit: str, what is counted for the speed; perplexity is shown of "tokens".
        per_step: int, how many there are in a batch. Defaults to `batch_size`.
        **tools: passed to `training.TensorBoard`, e.g. `sample`; attention maps are of one device.

    Returns:
        A dict: `parameters`, `steps`, `seconds`, `<unit>_per_second` and `history`, the losses
        [step, training, held out].

    Raises:
        InputError: if the loss is not finite.
        SystemExit: on all workers but the first, when they are done.
    """
    import keras

    from keras_llm import training
    from keras_llm.training.distribution import replicas

    replicas.check_same(options.seed, "--seed")  # waits for the first worker, who makes `folder`
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
        say(f"watch it: tensorboard --logdir {pathlib.Path(options.out).parent}")
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
    """Data whose batches say how many rows they have, which JAX's devices split: as many as the
    first of the training has; held-out batches of fewer are left out.

    Raises:
        InputError: if no held-out batch has as many.
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
    options.check(("batch_size", has_some, "no more than the held-out rows, with jax_data"))
    return train_data.map(shaped), whole


def write(folder, task, metrics, card):
    """Fill the folder from `model_folder` with what a run leaves.

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
    (folder / _BEST).unlink()  # last: until all else is written it is what would be lost


def model_options(options_class, task):
    """The options that a task was trained with."""
    return options_class(**{**task.metadata["options"], "smoke": False})


def say_unread(path, columns=None):
    """Say which files of a folder are not read; arguments as of `data.unread_files`."""
    from keras_llm import data

    if files := data.unread_files(path, columns):
        say(f"not read, by their names: {len(files):,} files of {path}, e.g. {files[0].name}")


def reasons(dropped):
    """How many were left out and why, in words."""
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) or "none"


def say(message):
    """A line of progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def has_pictures():
    """Whether pictures can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None
