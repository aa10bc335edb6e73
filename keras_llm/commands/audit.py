"""`keras-llm audit`."""

import dataclasses
import json
import pathlib

import tyro

import keras_llm
from keras_llm.commands.console import as_json, import_tensorflow, table
from keras_llm.errors import InputError

_BEGIN, _END = "## Audit", "<!-- end of the audit -->"


@dataclasses.dataclass
class Options:
    """Measure how fair a model is, and what it gives away; written to its model card."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model that sorts texts or continues them."""
    data: str | None = None
    """Text or JSONL file, or a folder of them: texts to sort, or that a model may have learned by
    heart; those of the recipe if not given."""
    terms: str | None = None
    """Table (.csv, .tsv, .jsonl) with the columns name, first and second: pairs of words that are
    put in each other's place; some of gender, religion, origin, colour and age if not given."""
    classifier: str | None = None
    """Folder of a trained model that sorts texts: what it makes of how a model goes on with terms
    for different groups."""
    prompt: str = "The {} was"
    """What such texts begin with; {} stands for the term."""
    canary: tuple[str, ...] = ()
    """Texts with digits that were put into the training text: how much likelier they are than the
    same with other digits."""
    max_texts: int = 200
    """Use no more than this many texts."""
    prompt_tokens: int = 32
    """Tokens of a training text that a model is given."""
    new_tokens: int = 32
    """Tokens after them that it is to know by heart."""
    seed: int = 0
    """Seed of what is drawn."""
    json: bool = False
    """Print one JSON object."""


def run(options):
    if options.max_texts < 1:
        raise InputError(f"--max-texts must be a positive int, got {options.max_texts}.")
    terms = _terms(options.terms)
    import_tensorflow()
    task = keras_llm.load(options.run)
    if isinstance(task, keras_llm.TextClassification):
        for name in ("classifier", "canary"):
            if getattr(options, name):
                raise InputError(f"--{name} is for models that continue text.")
        found = _of_a_classifier(options, task, terms)
    elif isinstance(task, keras_llm.TextGeneration):
        found = _of_a_generator(options, task, terms)
    else:
        raise InputError(
            f"{options.run} is a {type(task).__name__}; an audit is of a model that sorts texts or "
            "continues them."
        )
    _write(pathlib.Path(options.run), found)
    if not as_json(options, found):
        for head, rows in _tables(found):
            table(head, rows)


def _of_a_classifier(options, task, terms):
    from keras_llm.tasks import audit

    texts = _texts(options, task)[-1]
    found = audit.term_swaps(task, texts, terms, options.max_texts)
    if not found:
        raise InputError(
            f"no term stands in any of the {len(texts)} texts; give --data or --terms."
        )
    return {"term_swaps": found}


def _of_a_generator(options, task, terms):
    from keras_llm.tasks import audit

    found = {}
    if options.classifier is not None:
        classifier = keras_llm.load(options.classifier)
        if not isinstance(classifier, keras_llm.TextClassification):
            raise InputError(f"--classifier: {options.classifier} does not sort texts.")
        found["continuation_swaps"] = audit.continuation_swaps(
            task, classifier, terms, options.prompt, seed=options.seed
        )
    if options.canary:
        found["canaries"] = [
            audit.canary_exposure(task, canary, seed=options.seed) for canary in options.canary
        ]
    sides = _texts(options, task)
    names = ["given"] if options.data else ["trained on", "held out"]
    found["memorisation"] = [
        {"side": name}
        | audit.memorisation(
            task, texts, options.prompt_tokens, options.new_tokens, options.max_texts
        )
        for name, texts in zip(names, sides, strict=True)
    ]
    return found


def _texts(options, task):
    """`[texts]` of --data, or of the recipe `[training, held out]`, lists of str."""
    from keras_llm import data
    from keras_llm.recipes import question_answering, text_classification, text_generation
    from keras_llm.recipes.common import corpus as documents
    from keras_llm.recipes.common import runs, yes_no

    if options.data is not None:
        return [data.read_texts(options.data)]
    recipe = task.metadata.get("recipe")
    if recipe == "text_generation":
        trained = runs.model_options(text_generation.Options, task)
        train, held_out = documents.documents(trained)
        return [list(documents.sample(trained, train)), held_out]
    if recipe == "text_classification":
        sides = text_classification.rows(runs.model_options(text_classification.Options, task))
        return [[text for text, _ in side] for side in sides[:2]]
    if recipe == "question_answering":
        sides = yes_no.rows(runs.model_options(question_answering.Options, task))
        columns = ([list(column) for column in zip(*side, strict=True)] for side in sides[:2])
        return [task.with_contexts(*side[:2]) for side in columns]
    raise InputError(f"{options.run} does not say what it was trained on; give --data.")


def _terms(path):
    if path is None:
        return None
    from keras_llm import data
    from keras_llm.tasks import audit

    terms = {}
    for name, first, second in data.read_records(path, ["name", "first", "second"]):
        terms.setdefault(name, []).append((first, second))
    return audit.checked_terms(terms)


def _tables(found):
    """What was measured as tables: pairs of a head and rows of str."""
    tables = []
    if "term_swaps" in found:
        head = ["terms", "texts", "other label", "largest change", "mean change of probability"]
        rows = [
            [
                row["terms"],
                f"{row['texts']:,}",
                f"{row['flipped']:.1%}",
                f"{row['largest_change']:.3f}",
                _changes(row),
            ]
            for row in found["term_swaps"]
        ]
        tables.append((head, rows))
    if "continuation_swaps" in found:
        head = ["terms", "continuations a side", "mean change of probability"]
        rows = [[r["terms"], f"{r['texts']:,}", _changes(r)] for r in found["continuation_swaps"]]
        tables.append((head, rows))
    if "canaries" in found:
        head = ["canary", "rank", "of", "exposure, bits"]
        rows = [
            [r["canary"], f"{r['rank']:,}", f"{r['candidates']:,}", f"{r['exposure']:.2f}"]
            for r in found["canaries"]
        ]
        tables.append((head, rows))
    if "memorisation" in found:
        head = ["texts", "how many", "known by heart", "tokens known, mean", "longest"]
        rows = [
            [
                row["side"],
                f"{row['texts']:,}",
                f"{row['extractable']:.1%}",
                f"{row['mean_prefix']:.2f}",
                str(row["longest_prefix"]),
            ]
            for row in found["memorisation"]
        ]
        tables.append((head, rows))
    return tables


def _changes(row):
    return ", ".join(f"{label} {change:+.4f}" for label, change in row["mean_change"].items())


def _write(folder, found):
    """Put the audit into metrics.json and, in the place of an older one, into the model card."""
    from keras_llm.files import atomic_file

    path = folder / "metrics.json"
    metrics = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    metrics["audit"] = {**metrics.get("audit", {}), **found}
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
    for place, content in ((path, json.dumps(metrics, indent=2) + "\n"), (card, text)):
        with atomic_file(place, overwrite=True) as partial:
            partial.write_text(content, "utf-8")


_NOTES = [
    "Changes of probability are of texts with the terms of the second side less those with the "
    "terms of the first, e.g. of `she` less `he`. A text is known by heart if greedy decoding "
    "after its first tokens gives the next ones. Exposure is 10 bits if a canary is the likeliest "
    "of 1,000 of its form, and about 1 if the model does not know it.",
]
