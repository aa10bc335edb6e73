"""Read and write the special tokens that a Hugging Face tokenizer adds around a text."""

import json
import pathlib
from typing import Any

import tokenizers as rust

from keras_llm.errors import InputError
from keras_llm.json_files import read_json
from keras_llm.tokenizers import Tokenizer
from keras_llm.types import JSON

_TOKENIZER_FILE = "tokenizer.json"
_SETTINGS_FILE = "tokenizer_config.json"


def added_around(folder: pathlib.Path, tokenizer: Tokenizer) -> JSON:
    """Return the tokens that the tokenizer of a folder adds around a text.

    Args:
        folder: path with tokenizer.json or tokenizer_config.json.
        tokenizer: the loaded tokenizer of the folder.

    Returns:
        A dict of `begin_ids` and `end_ids`, lists of ints, for the metadata of a task.

    Raises:
        InputError: if tokenizer.json has a post-processor of another form.
    """
    begin = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id >= 0 else []
    path = folder / _TOKENIZER_FILE
    if not path.is_file():
        settings = read_json(folder / _SETTINGS_FILE) if (folder / _SETTINGS_FILE).is_file() else {}
        end = [tokenizer.eos_id] if settings.get("add_eos_token") else []
        return {"begin_ids": begin, "end_ids": end}
    try:
        processor = read_json(path).get("post_processor") or {}
        for part in processor.get("processors", [processor]):
            if part.get("type") in ("RobertaProcessing", "BertProcessing"):
                return {"begin_ids": [int(part["cls"][1])], "end_ids": [int(part["sep"][1])]}
            if part.get("type") == "TemplateProcessing":
                return _of_template(part)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(f"{path}: `post_processor` is not supported: {error!r}.") from None
    return {"begin_ids": begin, "end_ids": []}


def _of_template(part):
    sides: list[list[int]] = [[], []]
    side = 0
    for piece in part["single"]:
        if "Sequence" in piece:
            side = 1
        else:
            sides[side] += map(int, part["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return {"begin_ids": sides[0], "end_ids": sides[1]}


def write_around(
    folder: pathlib.Path,
    tokenizer: Tokenizer,
    begin: list[int],
    end: list[int],
    separators: list[int],
) -> None:
    """Make the written tokenizer of a folder add the tokens that a task adds around texts.

    Args:
        folder: path with a written tokenizer.
        tokenizer: the tokenizer of the task.
        begin, end: lists of ints, the tokens before and after a text.
        separators: list of ints, the tokens between two texts.
    """
    path = folder / _TOKENIZER_FILE
    if path.is_file():
        model = rust.Tokenizer.from_file(str(path))
        names: Any = {index: tokenizer.token(index) for index in (*begin, *end, *separators)}
        around = [[names[index] for index in ids] for ids in (begin, end, separators)]
        model.post_processor = rust.processors.TemplateProcessing(
            single=[*around[0], "$A", *around[1]],
            pair=[*around[0], "$A", *around[2], "$B", *around[1]],
            special_tokens=[(name, index) for index, name in names.items()],
        )
        path.write_text(model.to_str(pretty=True), "utf-8")
    elif end:
        path = folder / _SETTINGS_FILE
        row = {**read_json(path), "add_eos_token": True}
        path.write_text(json.dumps(row, indent=2, ensure_ascii=False) + "\n", "utf-8")
