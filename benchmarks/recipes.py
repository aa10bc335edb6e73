"""Train every recipe at its default size on real data and write the table of docs/recipes.md.

python benchmarks/recipes.py --out build/recipes

Existing runs in `--out` are reused; delete a run to repeat it. The results are saved in
docs/measured_recipes.json, so that runs of several machines can be combined. Training takes hours
and downloads the corpora.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import subprocess
import sys

DOCS = pathlib.Path(__file__).parent.parent / "docs"
KEPT = DOCS / "measured_recipes.json"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run of a recipe.

    Attributes:
        name: str, the name of the run's folder.
        arguments: str, the arguments of `keras-llm train` without `--out`.
        measures: dict from a key of the held-out metrics to its format string.
        baselines: dict from a key of the metrics to the name of the baseline.
        after: str, the run that this one starts from, or "".
    """

    name: str
    arguments: str
    measures: dict
    baselines: dict
    after: str = ""

    @property
    def command(self):
        """The command to reproduce the run."""
        recipe, *options = self.arguments.split(" ", 1)
        return " ".join([f"keras-llm train {recipe} --out runs/{self.name}", *options])


_LANGUAGE = {"bits_per_byte": "{:.3f} bits per byte", "perplexity": "perplexity {:.1f}"}
_COUNTS = {"unigram": "unigram", "trigram": "trigram"}
_CLASSES = {
    "accuracy": "accuracy {:.1%}",
    "macro_f1": "macro F1 {:.3f}",
    "calibration_error": "ECE {:.3f}",
}
_TFIDF = {"tfidf": "TF-IDF and logistic regression"}
_MINILM = " --start minilm --learning-rate 2e-4 --dropout 0.1 --epochs 1"
_EXPORT = " --export saved_model,litert"
RUNS = (
    Run(
        "reviews",
        "text_generation --epochs 3 --export saved_model,litert,litert_lm",
        _LANGUAGE,
        _COUNTS,
    ),
    Run(
        "tang",
        "text_generation --corpus tang-poems --epochs 6 --dropout 0.1" + _EXPORT,
        _LANGUAGE,
        _COUNTS,
    ),
    Run(
        "words",
        "masked_lm --optimizer muon --epochs 2" + _EXPORT,
        {"accuracy": "masked accuracy {:.1%}"},
        {"most_frequent": "most frequent token"},
    ),
    Run(
        "french",
        "translation" + _EXPORT,
        {"bleu": "BLEU {:.1f}", "chrf": "chrF {:.1f}"},
        {"memory": "translation memory", "copy": "copy of the source"},
    ),
    Run(
        "answers",
        "question_answering --epochs 1 --evaluations 4" + _EXPORT,
        {"exact_match": "exact match {:.1%}", "f1": "F1 {:.1%}"},
        {"baseline": "nearest sentence", "no_answer": "no answer"},
    ),
    Run(
        "yes_no",
        "question_answering --kind yes_no --epochs 1 --evaluations 4 --max-length 160" + _EXPORT,
        {"accuracy": "accuracy {:.1%}"},
        {"baseline": "always yes"},
    ),
    Run(
        "quiz",
        "question_answering --kind generative" + _EXPORT,
        {"exact_match": "exact match {:.1%}", "f1": "F1 {:.1%}"},
        {"baseline": "nearest question's answer", "frequent": "most frequent answer"},
    ),
    Run(
        "code",
        "code_generation --execute --export saved_model",
        {
            "bits_per_byte": "{:.3f} bits per byte",
            "parses": "{:.0%} of functions parse",
            "infilled_line": "{:.0%} of lines infilled",
        },
        {**_COUNTS, "usual_line": "most frequent next line"},
    ),
    Run(
        "dialogue",
        "chatbot --optimizer muon --rank 8 --judge-rows 12000 --judge-epochs 1" + _EXPORT,
        {"perplexity": "perplexity of answers {:.1f}"},
        {"most_frequent": "token frequencies"},
    ),
    Run(
        "sentiment",
        "text_classification --max-length 128 --max-rows 10000 --evaluations 4" + _MINILM + _EXPORT,
        _CLASSES,
        _TFIDF,
    ),
    Run(
        "topics",
        "text_classification --corpus newsgroups --max-length 112 --start minilm "
        "--learning-rate 3e-4 --dropout 0.1 --epochs 2 --evaluations 1" + _EXPORT,
        _CLASSES,
        _TFIDF,
    ),
    Run("chinese", "text_classification --corpus chinese-reviews" + _EXPORT, _CLASSES, _TFIDF),
    Run(
        "graded",
        "text_classification --kind number --max-length 64" + _MINILM + _EXPORT,
        {"rmse": "RMSE {:.3f}", "spearman": "Spearman {:.3f}"},
        {"tfidf": "TF-IDF and ridge regression"},
    ),
    Run(
        "vectors",
        "word_vectors --gensim",
        {
            "analogy_accuracy": "analogies {:.1%}",
            "wordsim_spearman": "WordSim-353 {:.3f}",
            "simlex_spearman": "SimLex-999 {:.3f}",
        },
        {"random": "random", "gensim": "gensim"},
    ),
    Run(
        "glad",
        "preference_tuning --start runs/reviews --pairs 600" + _EXPORT,
        {
            "reward_margin": "reward margin {:.2f}",
            "reward_accuracy": "pairs ranked right {:.1%}",
            "win_rate": "win rate {:.1%}",
            "kl": "KL {:.2f} nats",
        },
        {"before": "before"},
        after="reviews",
    ),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("build/recipes"))
    parser.add_argument("--only", nargs="*", default=[run.name for run in RUNS])
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    results = json.loads(KEPT.read_text("utf-8")) if KEPT.is_file() else {}
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    for run in RUNS:
        folder = options.out / "runs" / run.name
        if run.name in options.only and not options.table and not folder.exists():
            print(f"{run.command}", flush=True)
            command = [sys.executable, "-m", "keras_llm", "train", *run.arguments.split()]
            subprocess.run([*command, "--out", f"runs/{run.name}"], cwd=options.out, check=True)
        if (folder / "metrics.json").is_file():
            results[run.name] = summary(run, folder)
    results = {run.name: results[run.name] for run in RUNS if run.name in results}
    lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in results.items())
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    page = DOCS / "recipes.md"
    before, rest = page.read_text("utf-8").split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}", "utf-8")
    draw(results, DOCS / "pictures" / "recipes.png")


def summary(run, folder):
    """Return the results of a run for the table."""
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    training = metrics["training"]
    kinds = ("rows", "pairs", "conversations", "documents", "tokens", "words")
    options = json.loads((folder / "config.json").read_text("utf-8"))["metadata"]["options"]
    date = datetime.date.fromtimestamp((folder / "metrics.json").stat().st_mtime)
    return {
        "command": run.command,
        "date": date.isoformat(),
        "corpus": options["corpus"],
        "counts": {kind: training[kind] for kind in kinds if kind in training},
        "minutes": training["seconds"] / 60,
        "parameters": training["parameters"],
        "model": formatted(run, metrics["held_out"]),
        "baselines": {
            name: formatted(run, metrics[key])
            for key, name in run.baselines.items()
            if key in metrics
        },
        "artifacts": {kind: row["bytes"] for kind, row in metrics.get("artifacts", {}).items()},
        "history": training["history"],
    }


def formatted(run, measures):
    """Format the metrics of a run as text."""
    return ", ".join(
        form.format(measures[key]) for key, form in run.measures.items() if key in measures
    )


def table(results):
    """Return a Markdown table of all runs, and their commands."""
    lines = [
        "| run | data | held out | baselines | artifacts, MB |",
        "|---|---|---|---|---|",
    ]
    for name, row in results.items():
        counts = ", ".join(f"{n:,} {kind}" for kind, n in row["counts"].items())
        baselines = "; ".join(f"{key}: {text}" for key, text in row["baselines"].items())
        sizes = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in row["artifacts"].items())
        cells = [
            f"**{name}**, {row['parameters'] / 1e6:.1f} M, {row['minutes']:.1f} min, {row['date']}",
            f"`{row['corpus']}`: {counts}",
            row["model"],
            baselines,
            sizes or "none",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    commands = [row["command"] for row in results.values()]
    return "\n".join([*lines, "", "```console", *commands, "```"])


def draw(results, path):
    """Plot training and held-out losses, one panel per run with more than one evaluation."""
    from matplotlib.figure import Figure

    results = {name: row for name, row in results.items() if len(row["history"]) > 1}
    columns = 2  # readable on a phone
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(6, 1.9 * rows), layout="constrained")
    for index, (name, row) in enumerate(results.items(), 1):
        axes = figure.add_subplot(rows, columns, index)
        steps, train, held_out = zip(*row["history"], strict=True)
        axes.plot(steps, train, marker=".", label="training")
        axes.plot(steps, held_out, marker=".", label="held out")
        axes.set_title(name)
        if index == 1:
            axes.legend()
    figure.supxlabel("steps")
    figure.supylabel("loss")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
