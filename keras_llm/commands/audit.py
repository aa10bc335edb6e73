"""Audit a model for bias and memorization: `keras-llm audit`."""

import dataclasses
import json
import pathlib

import tyro

import keras_llm
from keras_llm.commands import entry_points
from keras_llm.commands.console import (
    as_json,
    check_data,
    import_tensorflow,
    kind_of,
    load_task,
    table,
    task_kind,
)
from keras_llm.errors import InputError

_BEGIN, _END = "## Audit", "<!-- end of the audit -->"


@dataclasses.dataclass
class Options:
    """Audit a model for bias and memorization; write the results to its model card."""

    run: tyro.conf.Positional[str]
    """Folder of a trained text classifier or text generator."""
    data: str | None = None
    """Text or JSONL file, or a folder of them: texts to classify, or to test for memorization.
    Defaults to the data of the recipe."""
    terms: str | None = None
    """Table (.csv, .tsv, .jsonl) with the columns name, first and second: pairs of words to swap.
    Defaults to terms for gender, religion, origin, color and age."""
    classifier: str | None = None
    """Folder of a trained text classifier that scores a generator's continuations of prompts with
    terms for different groups."""
    prompt: str = "The {} was"
    """Prompt for these continuations; {} is replaced by the term."""
    canary: tuple[str, ...] = ()
    """Texts with digits that were inserted into the training text, to compare their likelihood
    with that of the same texts with other digits."""
    max_texts: int = 200
    """Maximum number of texts."""
    prompt_tokens: int = 32
    """Number of tokens of a training text in the prompt."""
    new_tokens: int = 32
    """Number of following tokens to test for memorization."""
    seed: int = 0
    """Random seed."""
    json: bool = False
    """Print one JSON object."""


def run(options):
    if options.max_texts < 1:
        raise InputError(f"--max-texts must be a positive int, got {options.max_texts}.")
    _check(options, task_kind(options.run))
    if options.classifier is not None:
        task_kind(options.classifier)
    check_data(options.data)
    check_data(options.terms)
    import_tensorflow()
    terms = _terms(options.terms)
    task = load_task(options.run)
    _check(options, kind_of(task))
    if isinstance(task, keras_llm.TextClassification):
        results = _audit_classifier(options, task, terms)
    else:
        results = _audit_generator(options, task, terms)
    _write(pathlib.Path(options.run), results)
    if not as_json(options, results):
        for head, rows in _tables(results):
            table(head, rows)


def _check(options, kind):
    if kind not in ("TextClassification", "TextGeneration", "RankedChat", None):
        raise InputError(
            f"{options.run} must be a TextClassification or TextGeneration, got a {kind}."
        )
    if kind == "TextClassification":
        for name in ("classifier", "canary"):
            if getattr(options, name):
                raise InputError(f"--{name} is only for text generators.")


def _audit_classifier(options, task, terms):
    from keras_llm.tasks import audit

    texts = _texts(options, task)[-1]
    swaps = audit.term_swaps(task, texts, terms, options.max_texts)
    if not swaps:
        raise InputError(f"none of the {len(texts)} texts has a term; pass --data or --terms.")
    return {"term_swaps": swaps}


def _audit_generator(options, task, terms):
    from keras_llm.tasks import audit

    results = {}
    if options.classifier is not None:
        classifier = load_task(options.classifier)
        if not isinstance(classifier, keras_llm.TextClassification):
            raise InputError(
                f"--classifier: {options.classifier} must be a TextClassification, got a "
                f"{type(classifier).__name__}."
            )
        results["continuation_swaps"] = audit.continuation_swaps(
            task, classifier, terms, options.prompt, seed=options.seed
        )
    if options.canary:
        results["canaries"] = [
            audit.canary_exposure(task, canary, seed=options.seed) for canary in options.canary
        ]
    sides = _texts(options, task)
    names = ["given"] if options.data else ["trained on", "held out"]
    results["memorization"] = [
        {"side": name}
        | audit.memorization(
            task, texts, options.prompt_tokens, options.new_tokens, options.max_texts
        )
        for name, texts in zip(names, sides, strict=True)
    ]
    return results


def _texts(options, task):
    """Return `[texts]` from --data, or `[training, held out]` from the recipe, lists of str."""
    from keras_llm import data

    if options.data is not None:
        return [data.read_texts(options.data)]
    recipe = entry_points.recipe_of(task)
    if not hasattr(recipe, "texts"):
        raise InputError(f"{options.run} does not record its training data; pass --data.")
    return recipe.texts(task)


def _terms(path):
    if path is None:
        return None
    from keras_llm import data
    from keras_llm.tasks import audit

    terms = {}
    for name, first, second in data.read_records(path, ["name", "first", "second"]):
        terms.setdefault(name, []).append((first, second))
    return audit.checked_terms(terms)


def _tables(results):
    """Return the results as tables: pairs of a header and rows of str."""
    tables = []
    if "term_swaps" in results:
        head = ["terms", "texts", "label changes", "largest change", "mean change of probability"]
        rows = [
            [
                row["terms"],
                f"{row['texts']:,}",
                f"{row['flipped']:.1%}",
                f"{row['largest_change']:.3f}",
                _changes(row),
            ]
            for row in results["term_swaps"]
        ]
        tables.append((head, rows))
    if "continuation_swaps" in results:
        head = ["terms", "continuations per side", "mean change of probability"]
        rows = [[r["terms"], f"{r['texts']:,}", _changes(r)] for r in results["continuation_swaps"]]
        tables.append((head, rows))
    if "canaries" in results:
        head = ["canary", "rank", "candidates", "exposure, bits"]
        rows = [
            [r["canary"], f"{r['rank']:,}", f"{r['candidates']:,}", f"{r['exposure']:.2f}"]
            for r in results["canaries"]
        ]
        tables.append((head, rows))
    if "memorization" in results:
        head = ["texts", "count", "memorized", "memorized tokens, mean", "longest"]
        rows = [
            [
                row["side"],
                f"{row['texts']:,}",
                f"{row['extractable']:.1%}",
                f"{row['mean_prefix']:.2f}",
                str(row["longest_prefix"]),
            ]
            for row in results["memorization"]
        ]
        tables.append((head, rows))
    return tables


def _changes(row):
    return ", ".join(f"{label} {change:+.4f}" for label, change in row["mean_change"].items())


def _write(folder, results):
    """Write the audit to metrics.json and to the model card, replacing an older audit there."""
    from keras_llm.files import atomic_file
    from keras_llm.json_files import read_json

    path = folder / "metrics.json"
    metrics = read_json(path) if path.is_file() else {}
    metrics["audit"] = {**metrics.get("audit", {}), **results}
    lines = [_BEGIN, "", *_NOTES]
    for head, rows in _tables(metrics["audit"]):
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
        cells.insert(1, ["---"] * len(head))
        lines += ["", *("| " + " | ".join(row) + " |" for row in cells)]
    card = folder / "README.md"
    text = card.read_text("utf-8") if card.is_file() else f"# {folder.name}\n"
    before, _, rest = text.partition(_BEGIN + "\n")
    after = rest.partition(_END)[2].lstrip("\n")
    text = "\n".join([before.rstrip("\n"), "", *lines, "", _END, ""]) + (after and "\n" + after)
    for target, content in ((path, json.dumps(metrics, indent=2) + "\n"), (card, text)):
        with atomic_file(target, overwrite=True) as partial:
            partial.write_text(content, "utf-8")


_NOTES = [
    "A change of probability is that for texts with the terms of the second side minus that for "
    "texts with the terms of the first, e.g. `she` minus `he`. A text is memorized if greedy "
    "decoding after its first tokens reproduces the next ones. Exposure is 10 bits if a canary is "
    "the most likely of 1,000 candidates, and about 1 if the model did not memorize it.",
]
