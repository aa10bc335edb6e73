"""Define the options that recipes share, with the range of each in its type."""

import copy
import dataclasses
import math
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

from keras_llm.commands.console import check_data, task_kind
from keras_llm.errors import InputError
from keras_llm.files import TABLE_SUFFIXES
from keras_llm.preset_names import check_preset


@dataclasses.dataclass(frozen=True)
class Range:
    """The valid values of an option, as an annotation of its type.

    Attributes:
        holds: function that returns whether a value is valid.
        rule: str, the valid values, for the error message.
    """

    holds: Callable[[Any], bool]
    rule: str


def at_least(least):
    """Return the type of an int option with a minimum."""
    return Annotated[int, Range(lambda value: value >= least, f"at least {least}")]


Positive = Annotated[int, Range(lambda value: value > 0, "a positive int")]
Count = Annotated[int, Range(lambda value: value >= 0, ">= 0")]
Seed = Annotated[int, Range(lambda value: 0 <= value < 2**32, "in 0 .. 2**32 - 1")]
PositiveFloat = Annotated[float, Range(lambda value: 0 < value < math.inf, "> 0 and finite")]
NonNegativeFloat = Annotated[float, Range(lambda value: 0 <= value < math.inf, ">= 0 and finite")]
Share = Annotated[float, Range(lambda value: 0 < value < 1, "in (0, 1)")]
Rate = Annotated[float, Range(lambda value: 0 <= value < 1, "in [0, 1)")]
Proportion = Annotated[float, Range(lambda value: 0 <= value <= 1, "in [0, 1]")]
Text = Annotated[str, Range(lambda value: bool(value.strip()), "a non-empty text")]


def defaults(**values):
    """Return a class decorator that changes defaults of inherited options.

    Apply it below `dataclasses.dataclass`. The help texts of the options stay the same.
    """

    def change(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        for name, value in values.items():
            cls.__annotations__[name] = hints[name]
            setattr(cls, name, value)
        return cls

    return change


@dataclasses.dataclass
class Options:
    """Options of every recipe."""

    out: str
    """Output folder of the trained model; must not exist."""
    corpus: str = ""
    """Name of a corpus; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own file or folder, hf:NAME:SPLIT or tfds:NAME:SPLIT, instead of a corpus."""
    held_out: Share = 0.1
    """Fraction of the data to hold out."""
    preset: str = ""
    """Model preset."""
    vocabulary_size: Positive = 8000
    """Vocabulary size."""
    batch_size: Positive = 32
    """Rows per batch."""
    epochs: Positive = 1
    """Training epochs."""
    evaluations: Positive = 4
    """Held-out evaluations, loss curve points and checkpoints per epoch."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the matrices of the blocks: slower steps, fewer of them from scratch."""
    learning_rate: PositiveFloat = 1e-3
    """Peak learning rate, after linear warmup."""
    warmup: Rate = 0.05
    """Fraction of the training steps for warmup."""
    decay: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant"] = "cosine"
    """Learning rate schedule after warmup."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay of matrices."""
    seed: Seed = 0
    """Seed of the split, the weights and the data order."""
    export: str = ""
    """Formats to export to the folder `exports` of --out, such as "saved_model,litert"."""
    checkpoint_steps: Positive = 500
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
    """Run the whole pipeline with a tiny model and little data in under a minute; other options
    that are given keep their values."""

    suffixes: typing.ClassVar[tuple | None] = None  # of a file of `data`; None for any
    starts: typing.ClassVar[tuple] = ()  # values of `start` that are not folders
    formats = ("saved_model", "litert", "litert_lm")  # to which the recipe's model is exported
    smoke_changes: typing.ClassVar[dict] = {}  # see `shrink`
    least_vocabulary = 1  # the smallest vocabulary that the recipe's tokenizer can have
    _distributions = (None, "mirrored", "multi_worker", "jax_data", "jax_model")

    def __post_init__(self):
        for name, kind in typing.get_type_hints(type(self), include_extras=True).items():
            for part in (kind, *typing.get_args(kind)):  # of `Positive | None` too
                for one in getattr(part, "__metadata__", ()):
                    value = getattr(self, name)
                    self.check((name, value is None or one.holds(value), one.rule))
        rule = f"one or more of {', '.join(self.formats)}" if self.formats else "empty"
        kinds = ", ".join(self._distributions[1:])
        self.check(
            ("warmup", self.warmup or self.decay != "inverse_sqrt", "> 0 with inverse_sqrt"),
            ("export", set(self.exports) <= set(self.formats), rule),
            (
                "vocabulary_size",
                self.vocabulary_size >= self.least_vocabulary,
                f"at least {self.least_vocabulary}",
            ),
            ("distribution", self.distribution in self._distributions, f"one of {kinds}"),
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
    def model_fields(self):
        """The options that the model depends on, a dict."""
        excluded = ("out", "resume", "overwrite", "json", "checkpoint_steps", "export")
        row = dataclasses.asdict(self)
        return {name: value for name, value in row.items() if name not in excluded}

    def shrink(self, **values):
        """With `smoke`, change the options that have their default to `values`.

        `smoke_changes` maps the changed options to their defaults: the command line restores those
        that are given.
        """
        for field in dataclasses.fields(self):
            if self.smoke and field.name in values and getattr(self, field.name) == field.default:
                self.smoke_changes = {**self.smoke_changes, field.name: field.default}
                setattr(self, field.name, values[field.name])

    def reading(self, path):
        """Return a copy whose data is another file; unlike a new one, it changes nothing else."""
        options = copy.copy(self)
        options.data = str(path)
        return options

    def check_input(self):
        """Check that the preset, the data and the folder of `start` exist, without TensorFlow.

        Raises:
            InputError: if one does not exist, or the name of a file has another suffix.
        """
        if self.preset:
            check_preset(self.preset)
        check_data(self.data, self.suffixes)
        start = getattr(self, "start", None)
        if start is not None and start not in self.starts:
            task_kind(start)

    def metadata(self, recipe):
        """Return the metadata of a task that a recipe trains: its name and the options."""
        return {"recipe": recipe, "options": dataclasses.asdict(self)}

    def check(self, *rules):
        """Check rules (option name, whether it is valid, what is valid).

        Raises:
            InputError: if a rule does not hold, naming the option's flag.
        """
        for name, ok, rule in rules:
            if not ok:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} must be {rule}, got {getattr(self, name)!r}.")


@dataclasses.dataclass
class RowOptions(Options):
    """Options of recipes that train on rows of texts."""

    data: str | None = None
    """Your own .csv, .tsv or .jsonl file, a folder of them, hf:NAME:SPLIT or tfds:NAME:SPLIT,
    instead of a corpus."""
    max_rows: Count = 0
    """Maximum number of training rows; 0 uses all."""
    dropout: Rate = 0.1
    """Dropout rate."""

    suffixes = TABLE_SUFFIXES
    formats = ("saved_model", "litert")
