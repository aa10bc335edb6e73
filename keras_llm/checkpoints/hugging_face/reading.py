"""Load tasks from Hugging Face folders and write them back."""

import json
from typing import Any

import keras

from keras_llm import hub, models, tasks, tokenizers
from keras_llm.checkpoints.hugging_face import sentence_transformers, special_tokens
from keras_llm.checkpoints.hugging_face.model import (
    MULTI_LABEL,
    SOURCE,
    labels_of,
    read_model,
    write_model,
)
from keras_llm.errors import InputError
from keras_llm.files import atomic_folder
from keras_llm.json_files import read_json
from keras_llm.tasks.head import HeadTask
from keras_llm.training.adapters.lora import has_adapters, merge_lora
from keras_llm.types import JSON, PathLike

_HEADS = {
    "masked_lm": tasks.MaskedLanguageModel,
    "span_qa": tasks.QuestionAnswering,
    "text_classifier": tasks.TextClassification,
    "text_regressor": tasks.TextRegression,
    "token_classifier": tasks.TokenClassification,
}


def from_hugging_face(
    folder: PathLike,
    dtype: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> tasks.Task:
    """Load the task of a Hugging Face folder or repository.

    Args:
        folder: str or path with `config.json`, safetensors and a tokenizer; or the name of a
            repository of the hub, `OWNER/NAME` or `hf:OWNER/NAME`, whose files are downloaded by
            `huggingface_hub`. Supported families are GPT-2, OPT, GPT-NeoX (and Pythia), Llama
            (and SmolLM2), Mistral, Mixtral, Qwen 2, 2.5 and 3, SmolLM3, Phi-3 and Phi-4 (without
            LongRoPE), Gemma 2, Gemma 3 (text only), BERT (and MiniLM), RoBERTa, DistilBERT and T5.
        dtype: Keras dtype policy of the model. Defaults to the global policy.
        revision: str or None. A branch, tag or commit of the repository.
        token: str or None. An access token of Hugging Face. Defaults to the one of the login
            (`hf auth login`) or of the variable HF_TOKEN.

    Returns:
        A `TextGeneration` for a decoder, with any chat template of the folder as
        `metadata["chat_template"]` and additional end tokens of `generation_config.json` as
        `metadata["end_token_ids"]`; a `Translation` for T5. For an encoder, the task that
        `config.json` names: a `TextClassification`, `TokenClassification`, `QuestionAnswering` or
        `MaskedLanguageModel`. A classifier with one output is a `TextRegression`, with a sigmoid
        unless `problem_type` is "regression" or sentence-transformers' `activation_fn` is the
        identity; one with `problem_type` "multi_label_classification" has
        `metadata["multi_label"]`. If `config.json` names another class, or the folder of an encoder
        or a decoder has an embedding model of sentence-transformers, a `TextEmbedding` with the
        pooling of those files or mean pooling.

    Raises:
        InputError: if a field or tensor is missing, wrong or not supported; the message names it
            and the file; or if the repository cannot be downloaded. All names and shapes are
            checked before a weight is read.
    """
    folder = hub.folder_of(folder, revision, token)
    config = read_json(folder / "config.json")
    tokenizer = tokenizers.from_hugging_face(folder)
    metadata: JSON = {"source": f"{SOURCE}{config.get('model_type')}"}
    pooling = sentence_transformers.embedder_options(folder)
    model = read_model(folder, dtype, _HEADS if pooling is None else (), with_sigmoid=True)
    if isinstance(model, models.HeadModel):
        if "num_classes" in model.options:
            metadata["labels"] = labels_of(folder, model.options["num_classes"])
            if model.head == "text_classifier" and config.get("problem_type") == MULTI_LABEL:
                metadata["multi_label"] = True
        if model.head == "span_qa" and config["model_type"] == "roberta":
            metadata["num_separators"] = 2
        return _HEADS[model.head](model, tokenizer, metadata=metadata)
    if isinstance(model, models.Encoder) or pooling is not None:
        return _embedder(folder, model, tokenizer, pooling, metadata)
    ends = _end_token_ids(folder, config, model.config.vocabulary_size)
    if set(ends) - {tokenizer.eos_id}:
        metadata["end_token_ids"] = ends
    if isinstance(model, models.Seq2Seq):
        return tasks.Translation(model, tokenizer, metadata)
    template = tokenizers.chat_template_from_hugging_face(folder)
    if template is not None:
        metadata["chat_template"] = template.source
    return tasks.TextGeneration(model, tokenizer, metadata)


def to_hugging_face(
    task_or_model: tasks.Task | models.ConfiguredModel, folder: PathLike, overwrite: bool = False
) -> None:
    """Write a folder that `AutoModel...from_pretrained` of transformers loads.

    Args:
        task_or_model: a task, whose tokenizer and chat template are written too, or a model.
            Adapters are merged.
        folder: str or path. It is written atomically.
        overwrite: bool. Whether to replace an existing folder.

    Raises:
        InputError: if no family computes the same as the model, with the unsupported fields; or if
            `folder` exists and `overwrite` is False.
    """
    task: Any = None if isinstance(task_or_model, keras.Model) else task_or_model
    model = task_or_model if task is None else getattr(task, "model", None)
    if not isinstance(model, models.ConfiguredModel):
        raise InputError(
            f"`task_or_model` must be a task or a model of this library, got {type(task_or_model)}."
        )
    if has_adapters(model):
        model = merge_lora(model)
    token_ids = {}
    if task is not None:
        for role in ("pad", "bos", "eos"):
            index = getattr(task.tokenizer, f"{role}_id")
            token_ids[f"{role}_token_id"] = index if index >= 0 else None
    with atomic_folder(folder, overwrite) as partial:
        metadata = {} if task is None else task.metadata
        write_model(model, partial, token_ids, metadata)
        if isinstance(model, models.HeadModel) and model.head == "sentence_embedder":
            sentence_transformers.write(model, partial, metadata.get("max_length"))
        if task is not None:
            tokenizers.to_hugging_face(task.tokenizer, partial)
            if isinstance(task, HeadTask) and not isinstance(task.tokenizer, tokenizers.WordPiece):
                separators = getattr(task, "separators", task.end or task.begin)
                special_tokens.write_around(
                    partial, task.tokenizer, task.begin, task.end, separators
                )
            template = task.metadata.get("chat_template")
            if template is not None:
                (partial / "chat_template.jinja").write_text(template, "utf-8")
            if task.metadata.get("end_token_ids"):
                ends = json.dumps({"eos_token_id": list(task.end_token_ids)}, indent=2)
                (partial / "generation_config.json").write_text(ends + "\n", "utf-8")


def _embedder(folder, model, tokenizer, pooling, metadata):
    """Return the `TextEmbedding` of an encoder or a decoder."""
    if isinstance(model, models.Seq2Seq):
        raise InputError(f"{folder / 'modules.json'}: an encoder-decoder is no embedding model.")
    if pooling is None:
        path = folder / "1_Pooling" / "config.json"
        pooling = {"pooling": sentence_transformers.pooling_of(path) if path.is_file() else "mean"}
    metadata |= sentence_transformers.text_options(folder, tokenizer)
    if isinstance(model, models.CausalLM):
        metadata |= special_tokens.added_around(folder, tokenizer)
    return tasks.TextEmbedding(models.sentence_embedder(model, **pooling), tokenizer, metadata)


def _end_token_ids(folder, config, vocabulary_size):
    """Return the end tokens from generation_config.json, or else from config.json."""
    path, settings = folder / "config.json", config
    if (folder / "generation_config.json").is_file():
        path = folder / "generation_config.json"
        settings = {**config, **read_json(path)}
    ids = settings.get("eos_token_id")
    ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise InputError(f"{path}: `eos_token_id` must be an int or a list of ints, got {ids!r}.")
    return [token for token in ids if 0 <= token < vocabulary_size]  # others are never generated
