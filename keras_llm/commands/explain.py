"""`keras-llm explain`."""

import dataclasses
import pathlib

import tyro

import keras_llm
from keras_llm.commands.console import as_json, import_tensorflow, table


@dataclasses.dataclass
class Options:
    """Look into a trained model while it reads a text."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model."""
    text: tyro.conf.Positional[str]
    """The text; for question answering the question, for word vectors a word."""
    context: str | None = None
    """Where the answer is looked for (of models that answer questions)."""
    out: str | None = None
    """An HTML page, in one file, of attention maps and all else that is known."""
    max_tokens: int = 64
    """Of a longer text the first tokens are read."""
    overwrite: bool = False
    """Replace what is at --out."""
    json: bool = False
    """Print everything but the attention maps as one JSON object."""


def run(options):
    from keras_llm.files import atomic_file, check_free

    if options.out is not None:
        check_free(options.out, options.overwrite)
    import_tensorflow()
    from keras_llm.commands import explain_page
    from keras_llm.tasks import explain

    task = keras_llm.load(options.run)
    found = explain(task, options.text, options.context, options.max_tokens)
    if options.out is not None:
        title = pathlib.Path(options.run).name
        with atomic_file(options.out, options.overwrite) as partial:
            partial.write_text(explain_page.render(found, title), "utf-8")
    if as_json(options, _plain(found)):
        return
    if found.result:
        print(found.result)
    if found.attributions:
        rows = zip(found.tokens, found.attributions["tokens"], strict=True)
        table(
            ["token", f"adds to log p({found.attributions['label']})"],
            [[token, f"{value:+.4f}"] for token, value in rows],
        )
    if found.lens:
        rows = [
            [layer or "embeddings", *(row[-1] for row in rows)]
            for layer, rows in enumerate(
                zip(found.lens["tokens"], found.lens["probabilities"].round(3), strict=True)
            )
        ]
        table(["after layer", "next token", "probability"], rows)
    if found.neighbours:
        table(
            ["token", "nearest embeddings"],
            [
                [token, ", ".join(f"{other} {cosine:.2f}" for other, cosine in near)]
                for token, near in found.neighbours.items()
            ],
        )
    if options.out is not None:
        print(f"page: {options.out}")


def _plain(found):
    row = dataclasses.asdict(found)
    del row["attention"]
    for part, name in (("lens", "probabilities"), ("attributions", "tokens")):
        if row[part]:
            row[part][name] = row[part][name].tolist()
    return row
