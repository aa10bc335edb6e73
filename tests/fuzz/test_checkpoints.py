"""Fuzz the loaders of Hugging Face folders, GGUF files, adapters and word vectors."""

import json
import pydoc_data.topics

import gguf
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

import keras_llm
from keras_llm import checkpoints, models, tokenizers, training
from keras_llm.checkpoints.gguf.file import open_gguf
from keras_llm.checkpoints.hugging_face.tensors import open_folder
from keras_llm.errors import InputError

TEXTS = [pydoc_data.topics.topics["assert"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folders of small models of several families, by family."""
    root = tmp_path_factory.mktemp("folders")
    byte_pair = tokenizers.BytePair.train(TEXTS, 270)
    sentence_piece = tokenizers.SentencePiece.train(TEXTS, 400)
    word_piece = tokenizers.WordPiece.train(TEXTS, 120)

    def config(name, tok, **options):
        size = tok.vocabulary_size
        return models.preset(name, vocabulary_size=size, num_layers=1, max_length=16, **options)

    decoder = models.causal_lm(config("llama-tiny", sentence_piece))
    encoder = models.encoder(config("bert-tiny", word_piece))
    classifier = models.text_classifier(encoder, 3)
    tasks = {
        "gpt2": keras_llm.TextGeneration(
            models.causal_lm(config("gpt-tiny", byte_pair)), byte_pair, {"chat_template": "{{ 1 }}"}
        ),
        "llama": keras_llm.TextGeneration(decoder, sentence_piece),
        "bert": keras_llm.TextClassification(classifier, word_piece, ["a", "b", "c"]),
    }
    for name, task in tasks.items():
        checkpoints.to_hugging_face(task, root / name)
    return {name: root / name for name in tasks}


def test_hugging_face_models(folders, fuzz, check, mutated_file, with_file, tmp_path):
    assert all(check(checkpoints.from_hugging_face, folder) for folder in folders.values())
    names = ("config.json", "generation_config.json", "model.safetensors")

    @fuzz(25, mutated_file(folders.values(), names))
    def run(mutation):
        check(checkpoints.from_hugging_face, with_file(*mutation, tmp_path / "copy"))


@pytest.mark.parametrize(
    "changes",
    [{"num_hidden_layers": 9999}, {"vocab_size": 2**30}, {"head_dim": 2**30}],
)
def test_model_larger_than_its_tensors_raises_error(changes, folders, with_file, tmp_path):
    row = {**json.loads((folders["llama"] / "config.json").read_text()), **changes}
    content = json.dumps(row).encode()
    folder = with_file(folders["llama"], "config.json", content, tmp_path / "copy")
    with pytest.raises(InputError, match=r"model.safetensors: 11 tensors .* are too few"):
        checkpoints.from_hugging_face(folder)


def test_safetensors(fuzz, check, mutated_bytes, mutated_json, tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.ones((2, 3), "float32"), "b": np.zeros(4, "int32")}, path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    of_header = mutated_json(header).map(
        lambda text: len(text).to_bytes(8, "little") + text + data  # with the right length
    )

    @fuzz(150, st.one_of(mutated_bytes(content), of_header))
    def run(content):
        path.write_bytes(content)
        tensors = check(open_folder, tmp_path)
        for name in tensors or ():
            assert tensors.shape(name) is not None
            check(tensors.__getitem__, name)

    index = {"metadata": {"total_size": 8}, "weight_map": {"a": "model.safetensors"}}

    @fuzz(40, mutated_json(index))
    def run_index(content):
        (tmp_path / "model.safetensors.index.json").write_bytes(content)
        check(open_folder, tmp_path)


def gguf_fields(tok, config):
    """Return the metadata of a Llama as a dict of key to a pair of a value and its type."""
    types = gguf.GGUFValueType
    sizes = {
        "block_count": config.num_layers,
        "context_length": config.max_length,
        "embedding_length": config.hidden_dim,
        "feed_forward_length": config.intermediate_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "vocab_size": config.vocabulary_size,
    }
    fields = {f"llama.{name}": (value, types.UINT32) for name, value in sizes.items()}
    fields["llama.attention.layer_norm_rms_epsilon"] = (config.norm_epsilon, types.FLOAT32)
    fields["llama.rope.freq_base"] = (1e4, types.FLOAT32)
    ggml = {
        "model": ("gpt2", types.STRING),
        "pre": ("gpt-2", types.STRING),
        "tokens": (list(tok.vocabulary), types.ARRAY),
        "token_type": ([1] * tok.vocabulary_size, types.ARRAY),
        "merges": (tok.merges, types.ARRAY),
        "bos_token_id": (1, types.UINT32),
        "eos_token_id": (2, types.UINT32),
        "add_bos_token": (True, types.BOOL),
    }
    return fields | {f"tokenizer.ggml.{name}": row for name, row in ggml.items()}


def gguf_file(path, fields, tensors):
    writer = gguf.GGUFWriter(path, "llama")
    for name, (value, kind) in fields.items():
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, kind)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf(fuzz, check, mutated_bytes, tmp_path):
    tok = tokenizers.BytePair.train(TEXTS, 270)
    size = tok.vocabulary_size
    config = models.preset("llama-tiny", vocabulary_size=size, num_layers=1, max_length=16)
    d, f = config.hidden_dim, config.intermediate_dim
    kv = d // config.num_heads * config.num_key_value_heads
    shapes = {"attn_q": (d, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, d)}
    shapes |= {"ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f)}
    shapes |= {"attn_norm": (d,), "ffn_norm": (d,)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    shapes |= {"token_embd.weight": (config.vocabulary_size, d), "output_norm.weight": (d,)}
    tensors = {name: np.ones(shape, "float32") for name, shape in shapes.items()}
    fields = gguf_fields(tok, config)
    path = tmp_path / "model.gguf"
    content = gguf_file(path, fields, tensors).read_bytes()
    assert checkpoints.from_gguf(path).model.config.num_layers == 1

    @fuzz(60, mutated_bytes(content, 12_000))
    def run_bytes(content):
        path.write_bytes(content)
        opened = check(open_gguf, path)
        if opened is not None:
            check(checkpoints.from_gguf, path)

    for place, size in ((8, 8), (16, 8), (24, 8)):  # the counts, and the length of the first name
        for number in (2**32, 2**62, 2**64 - 1):
            changed = content[:place] + number.to_bytes(size, "little") + content[place + size :]
            path.write_bytes(changed)
            with pytest.raises(InputError, match=r"model.gguf is not .* do not fit into the file"):
                open_gguf(path)

    types = gguf.GGUFValueType
    odd = [
        *((0, types.UINT32), (2**32 - 1, types.UINT32), (-1, types.INT32), (2**63, types.UINT64)),
        *((float("nan"), types.FLOAT32), (1e308, types.FLOAT64), (True, types.BOOL)),
        *(("", types.STRING), ("x" * 3000, types.STRING), (3, types.UINT8)),
        *((["a"], types.ARRAY), ([1, 2], types.ARRAY), ([0.5] * 270, types.ARRAY)),
        *(([-1] * 270, types.ARRAY), ([7] * 270, types.ARRAY), (["a"] * 270, types.ARRAY)),
    ]
    values = st.dictionaries(st.sampled_from(list(fields)), st.sampled_from(odd), min_size=1)

    @fuzz(60, values.filter(lambda row: len(row) < 4))
    def run_fields(changed):
        check(checkpoints.from_gguf, gguf_file(path, fields | changed, tensors))


def test_adapters_and_word_vectors(fuzz, check, mutated_bytes, tmp_path):
    config = models.preset("gpt-tiny", vocabulary_size=40, num_layers=1, max_length=16)
    model = models.causal_lm(config)
    training.add_lora(model, rank=2)
    path = tmp_path / "adapter.safetensors"
    training.save_lora(model, path)
    content = path.read_bytes()
    plain = [models.causal_lm(config)]

    @fuzz(60, mutated_bytes(content, 2000))
    def run_adapter(content):
        path.write_bytes(content)
        if check(training.load_lora, plain[0], path) is not None:
            plain[0] = models.causal_lm(config)  # without the adapters

    vectors = b"2 3\nthe 0.5 1 2e3\nfox -1 nan 0.25\n"

    @fuzz(100, mutated_bytes(vectors))
    def run_vectors(content):
        (tmp_path / "vectors.txt").write_bytes(content)
        check(checkpoints.read_glove, tmp_path / "vectors.txt")
