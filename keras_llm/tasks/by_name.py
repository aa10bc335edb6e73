"""Load tasks from hubs by name, from checkpoints and from folders."""

import pathlib

from keras_llm import hub
from keras_llm.errors import InputError, optional_packages
from keras_llm.tasks.base import Task, load
from keras_llm.types import PathLike


def from_preset(
    preset: PathLike,
    dtype: str | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> Task:
    """Load a task by the name of a model on a hub, or from a folder or file.

    Args:
        preset: str or path.

            - `hf:OWNER/NAME`, `hf:OWNER/NAME@REVISION`: a repository of Hugging Face, see
              `checkpoints.from_hugging_face`.
            - `hf:OWNER/NAME/FILE.gguf`: one of its GGUF files, see `checkpoints.from_gguf`.
            - `kaggle:OWNER/MODEL/keras/VARIATION`: a preset of KerasHub on Kaggle, see
              `TextGeneration.from_keras_hub`.
            - A folder of this library or of Hugging Face, or a GGUF file.
        dtype: Keras dtype policy of a model that is read from a checkpoint, e.g. "bfloat16".
            Defaults to the global policy.
        revision: str or None. A branch, tag or commit of a Hugging Face repository.
        token: str or None. An access token of Hugging Face. Defaults to the one of the login
            (`hf auth login`) or of the variable HF_TOKEN.

    Returns:
        A task, e.g. `TextGeneration`.

    Raises:
        InputError: if the model cannot be downloaded or read, naming it.
    """
    if not hub.is_name(preset):
        if revision is not None or token is not None:
            raise InputError(f"`revision` and `token` are only for names of a hub, got {preset}.")
        return _from_path(pathlib.Path(preset), dtype)
    path = hub.fetch(str(preset), revision, token)
    if str(preset).startswith("kaggle:"):
        return _from_keras_hub(path, dtype)
    return _from_path(path, dtype)


def _from_path(path, dtype):
    from keras_llm import checkpoints

    if path.suffix == ".gguf":
        return checkpoints.from_gguf(path, dtype)
    if hub.is_checkpoint(path):
        return checkpoints.from_hugging_face(path, dtype)
    if dtype is not None:
        raise InputError(f"`dtype` is only for checkpoints; {path} has its own.")
    return load(path)


def _from_keras_hub(path, dtype):
    from keras_llm.tasks.text_generation import TextGeneration

    with optional_packages("a preset of KerasHub"):
        import keras_hub
    try:
        causal_lm = keras_hub.models.CausalLM.from_preset(str(path))
    except Exception as error:  # KerasHub raises many classes
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{path} is not a KerasHub language model: {reason}") from error
    return TextGeneration.from_keras_hub(causal_lm, dtype=dtype)
