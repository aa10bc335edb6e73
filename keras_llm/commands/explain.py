"""Explain a model's output for one text: `keras-llm explain`."""

import dataclasses
import pathlib

import tyro

from keras_llm.commands.console import as_json, import_tensorflow, load_task, table, task_kind


@dataclasses.dataclass
class Options:
    """Explain a trained model's output for one text."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model, a checkpoint, or a name such as hf:OWNER/NAME."""
    text: tyro.conf.Positional[str]
    """The text; for question answering the question, for word vectors a word."""
    context: str | None = None
    """Text that contains the answer (question answering only)."""
    out: str | None = None
    """Path of an HTML page to write, one file with attention maps and all other results."""
    max_tokens: int = 64
    """Truncate the text to this many tokens."""
    overwrite: bool = False
    """Replace an existing --out."""
    json: bool = False
    """Print everything but the attention maps as one JSON object."""


def run(options):
    from keras_llm.files import atomic_file, check_free

    if options.out is not None:
        check_free(options.out, options.overwrite)
    task_kind(options.run)
    import_tensorflow()
    from keras_llm.commands import explain_page
    from keras_llm.tasks import explain

    task = load_task(options.run)
    explanation = explain(task, options.text, options.context, options.max_tokens)
    if options.out is not None:
        title = pathlib.Path(options.run).name
        with atomic_file(options.out, options.overwrite) as partial:
            partial.write_text(explain_page.render(explanation, title), "utf-8")
    if as_json(options, _plain(explanation)):
        return
    if explanation.result:
        print(explanation.result)
    if explanation.attributions:
        rows = zip(explanation.tokens, explanation.attributions["tokens"], strict=True)
        table(
            ["token", f"attribution to log p({explanation.attributions['label']})"],
            [[token, f"{value:+.4f}"] for token, value in rows],
        )
    if explanation.lens:
        lens = explanation.lens
        rows = [
            [layer or "embeddings", *(row[-1] for row in rows)]
            for layer, rows in enumerate(
                zip(lens["tokens"], lens["probabilities"].round(3), strict=True)
            )
        ]
        table(["after layer", "next token", "probability"], rows)
    if explanation.neighbors:
        table(
            ["token", "nearest embeddings"],
            [
                [token, ", ".join(f"{other} {cosine:.2f}" for other, cosine in others)]
                for token, others in explanation.neighbors.items()
            ],
        )
    if options.out is not None:
        print(f"page: {options.out}")


def _plain(explanation):
    """Return an `Explanation` as a JSON-serializable dict without the attention maps."""
    row = dataclasses.asdict(explanation)
    del row["attention"]
    for part, name in (("lens", "probabilities"), ("attributions", "tokens")):
        if row[part]:
            row[part][name] = row[part][name].tolist()
    return row
