"""Train every recipe at its default size on real data, and write the table of docs/recipes.md.

python benchmarks/recipes.py --out build/recipes

Runs that lie in `--out` already are taken as they are, so that one can be made again alone. What
the table tells of a run is kept in docs/measured_recipes.json, so that one machine need not make
them all. It takes hours and fetches the corpora.
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
    """A recipe as it is trained.

    Attributes:
        name: str, of the folder.
        arguments: str, what stands behind `keras-llm train`, without `--out`.
        measures: dict from a key of the held-out measures to how it is told, a format.
        baselines: dict from a key of the measures to what it is called.
        after: str, the run that it goes on from, or "".
    """

    name: str
    arguments: str
    measures: dict
    baselines: dict
    after: str = ""

    @property
    def command(self):
        """What a reader would type."""
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
        {"baseline": "nearest sentence", "no_answer": "never an answer"},
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
            "infilled_line": "{:.0%} of lines put back",
        },
        {**_COUNTS, "usual_line": "usual next line"},
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
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text("utf-8")) if KEPT.is_file() else {}
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    for run in RUNS:
        folder = options.out / "runs" / run.name
        if run.name in options.only and not options.table and not folder.exists():
            print(f"{run.command}", flush=True)
            command = [sys.executable, "-m", "keras_llm", "train", *run.arguments.split()]
            subprocess.run([*command, "--out", f"runs/{run.name}"], cwd=options.out, check=True)
        if (folder / "metrics.json").is_file():
            kept[run.name] = summary(run, folder)
    kept = {run.name: kept[run.name] for run in RUNS if run.name in kept}
    lines = (f"{json.dumps(name)}: {json.dumps(row)}" for name, row in kept.items())
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    page = DOCS / "recipes.md"
    before, rest = page.read_text("utf-8").split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(kept)}\n{END}{rest.split(END)[1]}", "utf-8")
    draw(kept, DOCS / "pictures" / "recipes.png")


def summary(run, folder):
    """What the table tells of a run."""
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
        "model": told(run, metrics["held_out"]),
        "baselines": {
            name: told(run, metrics[key]) for key, name in run.baselines.items() if key in metrics
        },
        "artefacts": {kind: row["bytes"] for kind, row in metrics.get("artefacts", {}).items()},
        "history": training["history"],
    }


def told(run, measures):
    """Measures in words."""
    return ", ".join(
        form.format(measures[key]) for key, form in run.measures.items() if key in measures
    )


def table(kept):
    """The rows of all runs as Markdown."""
    lines = [
        "| command | data | minutes | model | held out | baselines | artefacts, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in kept.values():
        counts = ", ".join(f"{n:,} {kind}" for kind, n in row["counts"].items())
        others = "; ".join(f"{name}: {words}" for name, words in row["baselines"].items())
        sizes = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in row["artefacts"].items())
        cells = [
            f"`{row['command']}`, {row['date']}",
            f"`{row['corpus']}`: {counts}",
            f"{row['minutes']:.1f}",
            f"{row['parameters'] / 1e6:.1f} M",
            row["model"],
            others,
            sizes or "none",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(kept, path):
    """Training and held-out losses, a panel for each run that was evaluated more than once."""
    from matplotlib.figure import Figure

    kept = {name: row for name, row in kept.items() if len(row["history"]) > 1}
    columns = 2  # so that a phone shows them
    rows = -(-len(kept) // columns)
    figure = Figure(figsize=(6, 1.9 * rows), layout="constrained")
    for place, (name, row) in enumerate(kept.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        steps, train, held_out = zip(*row["history"], strict=True)
        axes.plot(steps, train, marker=".", label="training")
        axes.plot(steps, held_out, marker=".", label="held out")
        axes.set_title(name)
        if place == 1:
            axes.legend()
    figure.supxlabel("steps")
    figure.supylabel("loss")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
