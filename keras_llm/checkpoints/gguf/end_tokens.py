"""Find the tokens that end a text in the vocabulary of a GGUF file."""

import numbers

from keras_llm.types import JSON

# Fields with the id of such a token; the end token itself has another one.
_ROLES = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
# GGUF files name only some of them in fields, so llama.cpp knows the others by their texts.
_NAMES = (
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "<|end|>"),
    *("<end_of_turn>", "<turn|>", "<end_of_utterance>", "</s>", "<eos>", "<EOT>", "_<EOT>"),
    *("[EOS]", "[EOT]", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|tool_response>"),
    # What follows a file of code.
    *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|file_sep|>", "<reponame>"),
    *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>"),
)


def end_token_ids(
    metadata: JSON, special_tokens: dict[str, int], vocabulary_size: int
) -> list[int]:
    """Return the tokens at which llama.cpp ends a text, without the end token itself.

    Args:
        metadata: dict, the metadata of the file.
        special_tokens: dict str -> id, the control and user-defined tokens.
        vocabulary_size: int, the size of the model's vocabulary; greater ids are left out.

    Returns:
        A list of ints.
    """
    fields = [metadata.get(f"tokenizer.ggml.{role}_token_id") for role in _ROLES]
    ends = [int(index) for index in fields if isinstance(index, numbers.Integral)]
    names = set(_NAMES) & set(special_tokens)
    calls = names & {"<|call|>", "<|calls|>"}
    if calls and names & {"<|return|>", "<|flush|>"}:
        names.discard("<|end|>")  # the end of one of several parts of an answer
    if "<|tool_response>" in names:
        names.discard("</s>")
    ends += sorted(special_tokens[name] for name in names)
    return [index for index in dict.fromkeys(ends) if 0 <= index < vocabulary_size]
