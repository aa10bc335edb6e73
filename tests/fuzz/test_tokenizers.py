"""Fuzz the loaders of saved tokenizers, of Hugging Face's tokenizer files, and of GGUF metadata."""

import pydoc_data.topics

import pytest
from hypothesis import strategies as st

from keras_llm import tokenizers

TEXTS = [pydoc_data.topics.topics["assert"]]
SETTINGS = """{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true,
"do_lower_case": true, "chat_template": "{{ messages[0].content }}", "model_max_length": 1e30}"""


@pytest.fixture(scope="module")
def trained():
    return [
        tokenizers.BytePair.train(TEXTS, 270),
        tokenizers.SentencePiece.train(TEXTS, 400),
        tokenizers.SentencePiece.train(TEXTS, 400, "bpe"),
        tokenizers.WordPiece.train(TEXTS, 120),
    ]


def test_saved(trained, fuzz, check, mutated_file, with_file, tmp_path):
    folders = [tmp_path / str(i) for i in range(len(trained))]
    for tok, folder in zip(trained, folders, strict=True):
        tok.save(folder)

    assert all(check(tokenizers.load, folder) for folder in folders)

    @fuzz(150, mutated_file(folders))
    def run(mutation):
        tok = check(tokenizers.load, with_file(*mutation, tmp_path / "copy"))
        if tok is not None:
            ids = check(tok.encode, "the fox\u2581 jumps")
            assert isinstance(check(tok.decode, ids), str)


def test_hugging_face(trained, fuzz, check, mutated_file, with_file, tmp_path):
    folders = [tmp_path / str(i) for i in range(len(trained))]
    for tok, folder in zip(trained, folders, strict=True):
        folder.mkdir()
        tokenizers.to_hugging_face(tok, folder)
        if not (folder / "tokenizer_config.json").is_file():
            (folder / "tokenizer_config.json").write_text(SETTINGS)
    for index, names in ((0, ("vocab.json", "merges.txt")), (3, ("vocab.txt",))):
        folder = tmp_path / f"first_{index}"  # the files of the first releases
        trained[index].save(folder)
        assert all((folder / name).is_file() for name in names)
        (folder / "config.json").unlink()
        (folder / "tokenizer_config.json").write_text(SETTINGS)
        folders.append(folder)

    assert all(check(tokenizers.from_hugging_face, folder) for folder in folders)

    @fuzz(150, mutated_file(folders))
    def run(mutation):
        folder = with_file(*mutation, tmp_path / "copy")
        tok = check(tokenizers.from_hugging_face, folder)
        if tok is not None:
            assert isinstance(check(tok.encode, "the fox"), list)
        check(tokenizers.chat_template_from_hugging_face, folder)


def test_gguf_metadata(trained, fuzz, check):
    tok = trained[0]
    pieces = [trained[2].token(i) for i in range(trained[2].vocabulary_size)]
    rows = {
        "gpt2": {
            "pre": "gpt-2",
            "tokens": list(tok.vocabulary),
            "token_type": [1] * tok.vocabulary_size,
            "merges": tok.merges,
            "bos_token_id": 1,
            "add_bos_token": True,
        },
        "llama": {
            "tokens": pieces,
            "scores": [-float(i) for i in range(len(pieces))],
            "token_type": [3, 3, 3, 2, *[6] * 256, *[1] * (len(pieces) - 260)],
            "eos_token_id": 2,
            "add_space_prefix": True,
        },
    }
    odd = [
        *(None, 0, -1, 2**64, 10**39, 0.5, float("nan"), True, "", "a", "\0", [], [1], ["a"]),
        *([0.5] * 300, [7] * 270, [-1] * 300, ["a"] * 300, [None] * 300, [[]] * 300, {}),
    ]

    @st.composite
    def fields(draw):
        kind = draw(st.sampled_from(list(rows)))
        row = {"model": kind, **rows[kind]}
        for _ in range(draw(st.integers(1, 3))):
            name = draw(st.sampled_from(list(row)))
            if isinstance(row[name], list) and row[name] and draw(st.booleans()):
                place = draw(st.integers(0, len(row[name]) - 1))
                row[name] = [*row[name]]
                row[name][place] = draw(st.sampled_from(odd))
            else:
                row[name] = draw(st.sampled_from(odd))
        return {f"tokenizer.ggml.{name}": value for name, value in row.items()}

    assert check(tokenizers.from_gguf_metadata, {"tokenizer.ggml.model": "gpt2"}) is None

    @fuzz(150, fields())
    def run(row):
        tok = check(tokenizers.from_gguf_metadata, row)
        if tok is not None:
            assert isinstance(check(tok.encode, "the fox"), list)
