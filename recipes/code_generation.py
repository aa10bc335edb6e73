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

from keras_llm import cli
from keras_llm.recipes.common import code_evaluation, continuations, corpus, flags, model_card, runs

BASELINE = "trigram"
NEXT = 'generate {out} "def main():"'
CORPUS_KINDS = ("texts",)


@dataclasses.dataclass
@flags.defaults(
    corpus="python-stdlib", max_megabytes=5.0, near_duplicates=0.7, epochs=2, prompt="def main():\n"
)
class Options(corpus.LanguageModelOptions):
    """Train a causal language model that continues and infills code."""

    sequence_length: flags.at_least(4) = 256
    """Tokens per training window."""
    infill_rate: flags.Proportion = 0.5
    """Fraction of the windows that are fill-in-the-middle examples."""
    functions: flags.Positive = 100
    """Number of held-out functions whose body is generated."""
    gaps: flags.Positive = 200
    """Number of held-out lines to restore."""
    execute: bool = False
    """Run generated solutions of HumanEval's problems in a sandbox (Linux 6.2 or later)."""
    problems: int = 164
    """Number of problems, from the first."""
    samples: flags.Positive = 1
    """Solutions per problem."""

    least_vocabulary = 262  # bytes, special tokens and those of infilling

    def __post_init__(self):
        super().__post_init__()
        self.check(("problems", 0 < self.problems <= 164, "in 1 .. 164"))
        self.shrink(preset="llama-tiny", vocabulary_size=512, sequence_length=128)
        self.shrink(max_megabytes=0.4, evaluations=2, held_out=0.1, functions=8, gaps=8, problems=2)


def run(options):
    """Train, evaluate and save a model; return its metrics."""
    from keras_llm import data, models, tasks, tokenizers, training

    runs.prepare(options, *(["datasketch"] if options.near_duplicates else []), pictures=False)
    corpus.check_length(options, models.preset(options.preset))
    problems = code_evaluation.problems(options)
    train, held_out, report = corpus.prepared(options, contamination=True)
    tokenizer = tokenizers.BytePair.train(
        train, options.vocabulary_size, "llama3", tokenizers.INFILLING_TOKENS
    )
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "dropout": options.dropout}
    config = models.preset(options.preset, **sizes)
    task = tasks.TextGeneration(
        models.causal_lm(config), tokenizer, options.metadata("code_generation")
    )
    train_ids = data.encode_documents(train, tokenizer)
    held_out_ids = data.encode_documents(held_out, tokenizer)
    train_data = code_evaluation.windows(task, train_ids, options, options.epochs)
    validation_data = code_evaluation.windows(task, held_out_ids, options)
    baselines = continuations.baselines(task, train_ids, held_out_ids, held_out)
    if lines := code_evaluation.removed_lines(task, held_out, options):
        baselines["usual_line"] = {"infilled_line": code_evaluation.usual_lines(train, lines)}
    with runs.start(options) as run:
        fitted = run.fit(
            training.LanguageModelTrainer(task.model, ignore_id=tokenizer.pad_id),
            train_data,
            validation_data.take(32).cache(),
            "tokens",
            options.batch_size * options.sequence_length,
            sample=lambda: continuations.sample(task, options),
        )
        metrics = {
            "held_out": code_evaluation.measured(task, held_out, options),
            **baselines,
            "training": {
                "documents": len(train),
                "tokens": len(train_ids),
                "held_out_documents": len(held_out),
                **report,
                **fitted,
            },
        }
        if options.execute:
            metrics["human_eval"] = code_evaluation.pass_rates(
                task, problems, options.samples, config.max_length // 2, options.seed
            )
        run.save(task, metrics, _model_card(task, options, metrics))
    return metrics


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out files or on the texts of a file or folder."""
    from keras_llm.data import read_texts

    task, options = runs.load(folder, Options)
    documents = read_texts(data) if data else corpus.documents(options)[1]
    return code_evaluation.measured(task, documents, options)


def texts(task):
    """Return the training and the held-out files of a trained model, two lists of str."""
    return corpus.texts(runs.model_options(Options, task))


def _model_card(task, options, metrics):
    training, held_out = metrics["training"], metrics["held_out"]
    usual = {"usual_line": "most frequent next line"} if "usual_line" in metrics else {}
    return model_card.card(
        options,
        metrics,
        "A causal language model that continues and infills code.",
        {"unigram": "unigram", BASELINE: "trigram (Kneser-Ney)", **usual},
        f"{held_out['tokens']:,} tokens in {training['held_out_documents']:,} files in windows of "
        f"{options.sequence_length} tokens, {held_out.get('functions', 0)} functions with a "
        f"generated body and {held_out.get('gaps', 0)} removed lines",
        [
            f"{model_card.shape(task.model.config, options.sequence_length)}; "
            f"{training['tokens']:,} training tokens in {training['documents']:,} files.",
            f"{options.infill_rate:.0%} of the windows were fill-in-the-middle examples.",
            *code_evaluation.notes(metrics, options.samples),
            *corpus.notes(training),
            "Limits: generated code looks plausible but is often wrong, and follows the style of "
            "the training code.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
