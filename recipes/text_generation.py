"""Train a causal language model on stories, poems, reviews or code, and ask it for more.

    keras-llm train text_generation --out runs/reviews --corpus movie-reviews
    keras-llm train text_generation --out runs/mine --data my_texts/

Documents are split into training and held-out, a tokenizer is trained on the first, the model is
trained with `fit` on packed batches, and the folder `--out` gets the best weights, the tokenizer,
held-out measures beside a unigram baseline, a model card and TensorBoard logs.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import sys
from typing import Literal

from keras_llm.errors import InputError
from keras_llm.files import atomic_folder, check_free

_BEST = "best.weights.h5"
_CHECKPOINTS = "checkpoints"


@dataclasses.dataclass
class Options:
    """Train a causal language model that continues text."""

    out: str
    """Folder for the trained model; must not exist."""
    corpus: str = "movie-reviews"
    """A corpus by name; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .txt or .jsonl file, or a folder of them, instead of a corpus."""
    text_field: str = "text"
    """The field of a JSONL record that holds the text."""
    max_megabytes: float = 34.0
    """Use no more than this much text."""
    held_out: float = 0.05
    """Share of the documents that is held out."""
    preset: str = "llama-3m"
    """Shape of the model."""
    vocabulary_size: int = 4096
    """Tokens in the vocabulary."""
    tokenizer: Literal["unigram", "bpe"] = "bpe"
    """Kind of SentencePiece model."""
    sequence_length: int = 128
    """Tokens in a training window."""
    batch_size: int = 8
    """Windows in a batch."""
    epochs: int = 1
    """Passes over the training text."""
    evaluations: int = 4
    """Held-out evaluations (on at most 32 batches), samples and checkpoints in each pass."""
    learning_rate: float = 3e-3
    """Peak learning rate, after a linear warm-up."""
    decay: Literal["cosine", "linear", "inverse_sqrt", "wsd", "constant"] = "cosine"
    """How the learning rate goes down from its peak."""
    warmup: float = 0.05
    """Share of the training that warms up."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices."""
    dropout: float = 0.0
    """Dropout in the model."""
    prompt: str = "This"
    """What the logged samples continue."""
    seed: int = 0
    """Seed of the split, the weights, the order of the data and the samples."""
    checkpoint_steps: int = 500
    """Steps between two checkpoints that --resume can go on from."""
    resume: bool = False
    """Go on with a run that was stopped or killed; the same options give the same model."""
    overwrite: bool = False
    """Replace what is at --out."""
    json: bool = False
    """Print the measures as one JSON object."""
    smoke: bool = False
    """A tiny model on a little text, to try the whole way in under a minute."""

    def __post_init__(self):
        for name, ok, rule in (
            ("max_megabytes", self.max_megabytes > 0, "> 0"),
            ("held_out", 0 < self.held_out < 1, "in (0, 1)"),
            ("sequence_length", self.sequence_length > 0, "a positive int"),
            ("batch_size", self.batch_size > 0, "a positive int"),
            ("epochs", self.epochs > 0, "a positive int"),
            ("evaluations", self.evaluations > 0, "a positive int"),
            ("checkpoint_steps", self.checkpoint_steps > 0, "a positive int"),
            ("learning_rate", self.learning_rate > 0, "> 0"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("warmup", self.warmup or self.decay != "inverse_sqrt", "> 0 with inverse_sqrt"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("prompt", bool(self.prompt), "a text"),
        ):
            if not ok:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} must be {rule}, got {getattr(self, name)!r}.")
        if self.smoke:
            self.preset, self.vocabulary_size, self.sequence_length = "llama-tiny", 512, 64
            self.max_megabytes, self.evaluations = min(self.max_megabytes, 0.3), 2
            self.held_out = max(self.held_out, 0.1)


def run(options):
    """Train, evaluate and save.

    Args:
        options: `Options`.

    Returns:
        The dict that is saved as `metrics.json`.

    Raises:
        InputError: if an option or the data cannot be used; nothing is at `out` then.
    """
    import keras

    from keras_llm import data, models, tasks, tokenizers, training

    check_free(options.out, options.overwrite)
    config = models.preset(
        options.preset, vocabulary_size=options.vocabulary_size, dropout=options.dropout
    )
    if options.sequence_length > config.max_length:
        raise InputError(
            f"--sequence-length must be at most the preset's {config.max_length}, "
            f"got {options.sequence_length}."
        )
    train_documents, held_out_documents = documents(options)
    keras.utils.set_random_seed(options.seed)
    tokenizer = tokenizers.SentencePiece.train(
        train_documents, options.vocabulary_size, model_type=options.tokenizer
    )
    model = models.causal_lm(config)
    train_ids = data.encode_documents(train_documents, tokenizer)
    held_out_ids = data.encode_documents(held_out_documents, tokenizer)
    shape = {
        "sequence_length": options.sequence_length,
        "batch_size": options.batch_size,
        "bos_id": tokenizer.bos_id,
        "pad_id": tokenizer.pad_id,
    }
    training.check_token_ids(train_ids, config.vocabulary_size)
    train_data = functools.partial(
        data.packed_dataset, train_ids, **shape, epochs=options.epochs, seed=options.seed
    )
    held_out_windows = data.windows(held_out_ids, options.sequence_length)
    shape["batch_size"] = min(options.batch_size, max(1, held_out_windows))
    validation_data = data.packed_dataset(held_out_ids, **shape).take(32).cache()
    steps = data.steps_per_epoch(train_ids, options.sequence_length, options.batch_size)
    interval = max(1, steps // options.evaluations)
    intervals = options.epochs * steps // interval

    total = intervals * interval
    schedule = training.WarmupDecay(
        options.learning_rate, total, round(options.warmup * total), options.decay
    )
    optimizer = training.AdamW(
        schedule, weight_decay=options.weight_decay, beta_2=0.95, global_clipnorm=1.0
    )
    trainer = training.LanguageModelTrainer(model, ignore_id=tokenizer.pad_id)
    trainer.compile(optimizer, jit_compile=False)
    task = tasks.TextGeneration(
        model,
        tokenizer,
        metadata={"recipe": "text_generation", "options": dataclasses.asdict(options)},
    )

    tokens_per_step = options.batch_size * options.sequence_length
    _say(
        f"{len(train_documents)} documents, {len(train_ids)} tokens for training; "
        f"{len(held_out_documents)} documents held out; {model.count_params():,} parameters"
    )
    keep = [_BEST, f"{_CHECKPOINTS}/step_*"]
    with (
        atomic_folder(options.out, options.overwrite, keep, options.resume) as folder,
        _told_where_it_stopped(folder),
    ):
        _say(f"watch it: tensorboard --logdir {pathlib.Path(options.out).parent}")
        best = training.BestWeights(folder / _BEST, model=model)
        resume = training.Resume(
            folder / _CHECKPOINTS,
            every=options.checkpoint_steps,
            identity={"options": _of_the_model(options)},
            callbacks=[best],
        )
        trainer.fit(
            resume.data(lambda start: train_data(start=start)),
            steps_per_epoch=interval,
            epochs=intervals,
            validation_data=validation_data,
            shuffle=False,
            verbose=0,
            callbacks=[
                best,
                training.TensorBoard(
                    folder / "logs",
                    tokens_per_step,
                    sample=lambda: _sample(task, options),
                ),
                training.ProgressBar(total, tokens_per_step),
                resume,
            ],
        )
        seconds = resume.seconds
        if not best.path.is_file():
            raise InputError("the held-out loss is not finite; try a lower --learning-rate.")
        model.load_weights(best.path)
        metrics = {
            "held_out": evaluate_documents(task, held_out_documents, options.sequence_length),
            "unigram": training.evaluate_unigram(
                train_ids,
                held_out_ids,
                _bytes(held_out_documents),
                tokenizer.bos_id,
                options.vocabulary_size,
            ),
            "training": {
                "parameters": model.count_params(),
                "documents": len(train_documents),
                "tokens": len(train_ids),
                "held_out_documents": len(held_out_documents),
                "steps": total,
                "seconds": round(seconds, 1),
                "tokens_per_second": round(total * tokens_per_step / seconds),
            },
        }
        task.write(folder)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
        (folder / "README.md").write_text(_model_card(task, options, metrics), "utf-8")
        shutil.rmtree(folder / _CHECKPOINTS)
        best.path.unlink()  # last: until all else is written it is what would be lost
    return metrics


def documents(options):
    """The training and held-out documents that the options name.

    Args:
        options: `Options`.

    Returns:
        Two lists of str.

    Raises:
        InputError: if the data cannot be read or is too little.
    """
    from keras_llm import data
    from keras_llm.recipes import corpora

    if options.data is None:
        texts = corpora.load(options.corpus)
    else:
        texts = data.read_texts(options.data, text_field=options.text_field)
    limit, size, used = options.max_megabytes * 1e6, 0, []
    for text in data.shuffle_documents(texts, options.seed):
        size += len(text.encode())
        if size > limit and len(used) > 1:
            break
        used.append(text)
    return data.split_documents(used, options.held_out, options.seed)


def evaluate(folder, data=None):
    """Measure a trained model on its held-out documents, or on other text.

    Args:
        folder: str or path, the `out` of a run.
        data: path of text files, or None for the documents held out in training (which a model
            made without a recipe has not).

    Returns:
        A dict, see `training.evaluate_language_model`.
    """
    import keras_llm
    from keras_llm.data import read_texts

    task = keras_llm.load(folder)
    if "options" not in task.metadata:  # made in Python, not by a recipe
        return evaluate_documents(task, read_texts(data), task.model.config.max_length)
    options = Options(**{**task.metadata["options"], "smoke": False})
    texts = read_texts(data) if data else documents(options)[1]
    return evaluate_documents(task, texts, options.sequence_length)


def evaluate_documents(task, texts, sequence_length):
    """Perplexity, bits per byte and accuracy of a task on documents."""
    from keras_llm import data, training

    return training.evaluate_language_model(
        task.model,
        data.encode_documents(texts, task.tokenizer),
        _bytes(texts),
        task.tokenizer.bos_id,
        sequence_length,
    )


@contextlib.contextmanager
def _told_where_it_stopped(folder):
    try:
        yield
    except BaseException:
        if (folder / _BEST).is_file():
            _say(f"stopped; the best weights so far are {folder / _BEST}")
        if any((folder / _CHECKPOINTS).glob("step_*")):
            _say("the same command with --resume goes on from the last checkpoint")
        raise


def _of_the_model(options):
    """The options that a model depends on."""
    elsewhere = ("out", "resume", "overwrite", "json", "checkpoint_steps")
    row = dataclasses.asdict(options)
    return {name: value for name, value in row.items() if name not in elsewhere}


def _sample(task, options):
    settings = {"max_new_tokens": 60, "temperature": 0.8, "top_p": 0.95, "seed": options.seed}
    try:
        text = task(options.prompt, **settings)
    except InputError as error:  # of a loss that is not finite; the training tells by itself
        return str(error)
    quoted = (options.prompt + text).replace("\n", "\n> ")
    return f"> {quoted}"


def _model_card(task, options, metrics):
    held_out, unigram, training = (metrics[k] for k in ("held_out", "unigram", "training"))
    config = task.model.config
    source = options.data or f"corpus `{options.corpus}`"
    return f"""# {pathlib.Path(options.out).name}

A causal language model trained with the recipe `text_generation` of keras_llm on {source}.

| | model | unigram baseline |
|---|---|---|
| held-out perplexity | {held_out["perplexity"]:.2f} | {unigram["perplexity"]:.2f} |
| held-out bits per byte | {held_out["bits_per_byte"]:.3f} | {unigram["bits_per_byte"]:.3f} |
| held-out accuracy | {held_out["accuracy"]:.1%} | |

Measured on {held_out["tokens"]:,} tokens of {training["held_out_documents"]:,} documents that were
not trained on, in windows of {options.sequence_length} tokens.

- Shape: preset `{options.preset}`, {training["parameters"]:,} parameters, {config.num_layers}
  layers, width {config.hidden_dim}, vocabulary {config.vocabulary_size}, longest text
  {config.max_length} tokens.
- Training: {training["tokens"]:,} tokens of {training["documents"]:,} documents,
  {training["steps"]:,} steps in {training["seconds"]:.0f} s ({training["tokens_per_second"]:,}
  tokens/s), seed {options.seed}.
- Limits: it continues text in the manner of its training data and knows nothing else; it was not
  tuned to be helpful, true or safe.

```
keras-llm generate {options.out} "{options.prompt}" --stream
keras-llm export {options.out} --to saved_model --out serving/{pathlib.Path(options.out).name}
keras-llm export {options.out} --to litert --out mobile/{pathlib.Path(options.out).name}.tflite
```
"""


def _bytes(texts):
    return sum(len(text.encode()) for text in texts)


def _say(message):
    print(message, file=sys.stderr, flush=True)
