"""Train a causal language model that continues and infills code.

    keras-llm train code_generation --out runs/code
    keras-llm train code_generation --out runs/mine --data my_project.jsonl
    keras-llm generate runs/code "def add(a, b):" --suffix "    return total"

The files of the interpreter's standard library are split into training and held-out data, without
near duplicates; half of the windows are fill-in-the-middle examples. Metrics on held-out code: bits
per byte next to n-gram baselines, the share of functions that parse with a generated body, and the
share of removed lines restored. `--execute` runs solutions of HumanEval's problems in a sandbox.
"""

import dataclasses
import sys

from keras_llm.recipes.common import code_evaluation, continuations, corpus, model_card, runs

BASELINE = "trigram"
NEXT = 'generate {out} "def main():"'


@dataclasses.dataclass
class Options(corpus.LanguageModelOptions):
    """Train a causal language model that continues and infills code."""

    corpus: str = "python-stdlib"
    """Name of a corpus of the kind "texts"; `keras-llm recipes` lists them."""
    max_megabytes: float = 5.0
    """Maximum size of the text, in MB."""
    near_duplicates: float = 0.7
    """Drop files that share at least this fraction with another file; 0 drops none."""
    sequence_length: int = 256
    """Tokens per training window."""
    epochs: int = 2
    """Training epochs."""
    infill_rate: float = 0.5
    """Fraction of the windows that are fill-in-the-middle examples."""
    functions: int = 100
    """Number of held-out functions whose body is generated."""
    gaps: int = 200
    """Number of held-out lines to restore."""
    execute: bool = False
    """Run generated solutions of HumanEval's problems in a sandbox (Linux 6.2 or later)."""
    problems: int = 164
    """Number of problems, from the first."""
    samples: int = 1
    """Solutions per problem."""
    prompt: str = "def main():\n"
    """Prompt of the logged samples."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("sequence_length", self.sequence_length > 3, "at least 4"),
            ("infill_rate", 0 <= self.infill_rate <= 1, "in [0, 1]"),
            ("functions", self.functions > 0, "a positive int"),
            ("gaps", self.gaps > 0, "a positive int"),
            ("problems", 0 < self.problems <= 164, "in 1 .. 164"),
            ("samples", self.samples > 0, "a positive int"),
        )
        if self.smoke:
            self.preset, self.vocabulary_size, self.sequence_length = "llama-tiny", 512, 128
            self.max_megabytes, self.evaluations = min(self.max_megabytes, 0.4), 2
            self.held_out, self.functions, self.gaps = max(self.held_out, 0.1), 8, 8
            self.problems = min(self.problems, 2)


def run(options):
    """Train, evaluate and save a model.

    Args:
        options: `Options`.

    Returns:
        The dict saved as `metrics.json`.

    Raises:
        InputError: if an option or the data is invalid; `out` is not created then.
    """
    from keras_llm import data, models, tasks, tokenizers

    runs.prepare(options, *(["datasketch"] if options.near_duplicates else []), pictures=False)
    problems = code_evaluation.problems(options)
    train, held_out, report = corpus.prepared(options)
    report["contamination"] = corpus.measured_contamination(train, held_out)
    tokenizer = tokenizers.BytePair.train(
        train, options.vocabulary_size, "llama3", tokenizers.INFILLING_TOKENS
    )
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "dropout": options.dropout}
    config = models.preset(options.preset, **sizes)
    corpus.check_length(options, config)
    model = models.causal_lm(config)
    task = tasks.TextGeneration(
        model, tokenizer, {"recipe": "code_generation", "options": dataclasses.asdict(options)}
    )
    train_ids = data.encode_documents(train, tokenizer)
    held_out_ids = data.encode_documents(held_out, tokenizer)
    train_data = code_evaluation.windows(
        task, train_ids, options, options.batch_size, options.epochs
    )
    count = max(1, data.windows(held_out_ids, options.sequence_length))
    validation_data = code_evaluation.windows(
        task, held_out_ids, options, min(options.batch_size, count)
    )
    trainer = runs.token_trainer(options, model, len(train_data), tokenizer.pad_id)
    runs.say(
        f"{len(train)} files, {len(train_ids)} tokens for training; {len(held_out)} files held "
        f"out; {model.count_params():,} parameters"
    )
    with runs.model_folder(options) as folder:
        trained = runs.fit(
            folder,
            options,
            trainer,
            train_data,
            validation_data.take(32).cache(),
            "tokens",
            options.batch_size * options.sequence_length,
            sample=lambda: continuations.sample(task, options),
        )
        metrics = {
            "held_out": code_evaluation.measured(task, held_out, options),
            **continuations.baselines(task, train_ids, held_out_ids, held_out),
            "training": {
                "documents": len(train),
                "tokens": len(train_ids),
                "held_out_documents": len(held_out),
                **report,
                **trained,
            },
        }
        if lines := code_evaluation.asked_lines(task, held_out, options):
            metrics["usual_line"] = {"infilled_line": code_evaluation.usual_lines(train, lines)}
        if options.execute:
            metrics["human_eval"] = code_evaluation.pass_rates(
                task, problems, options.samples, config.max_length // 2, options.seed
            )
        runs.write(folder, task, metrics, _model_card(task, options, metrics))
    model_card.ship(options, task, metrics)
    return metrics


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out files or on other files.

    Args:
        folder: str or path, the `out` of a run.
        data: path of text files, or None for the files held out in training.

    Returns:
        A dict, see `code_evaluation.measured`.
    """
    import keras_llm
    from keras_llm.data import read_texts

    task = keras_llm.load(folder)
    options = runs.model_options(Options, task)
    return code_evaluation.measured(
        task, read_texts(data) if data else corpus.documents(options)[1], options
    )


def _model_card(task, options, metrics):
    config, training, held_out = task.model.config, metrics["training"], metrics["held_out"]
    return model_card.card(
        options,
        metrics,
        "A causal language model that continues and infills code.",
        {
            "unigram": "unigram",
            BASELINE: "trigram (Kneser-Ney)",
            **({"usual_line": "most frequent next line"} if "usual_line" in metrics else {}),
        },
        f"{held_out['tokens']:,} tokens in {training['held_out_documents']:,} files in windows of "
        f"{options.sequence_length} tokens, {held_out.get('functions', 0)} functions with a "
        f"generated body and {held_out.get('gaps', 0)} removed lines",
        [
            f"{config.num_layers} layers, width {config.hidden_dim}, vocabulary "
            f"{config.vocabulary_size}, maximum length {config.max_length} tokens; "
            f"{training['tokens']:,} training tokens in {training['documents']:,} files.",
            f"{options.infill_rate:.0%} of the windows were fill-in-the-middle examples.",
            "`parses` is the share of functions that parse with the generated body, cut to whole "
            "lines; `real parses` is that share for the real bodies, cut to as many tokens.",
            "`infilled line` is the share of removed lines for which the first generated line is "
            "correct, `infilled exactly` the share for which the generation also ends there.",
            code_evaluation.note(metrics, options.samples),
            *corpus.notes(training),
            "Limits: generated code looks plausible but is often wrong, and follows the style of "
            "the training code.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
