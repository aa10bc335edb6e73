"""Test round trips of Hugging Face folders; tests/parity compares with other libraries."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import keras_llm
from keras_llm import models, tokenizers, training
from keras_llm.checkpoints import from_hugging_face, load_model, to_hugging_face
from keras_llm.checkpoints.hugging_face import weight_mapping
from keras_llm.checkpoints.hugging_face.model import FAMILIES, describe
from keras_llm.checkpoints.hugging_face.tensors import Tensors
from keras_llm.errors import InputError
from keras_llm.layers import Llama3Scaling, NTKScaling, Rotary, YarnScaling

LLAMA = models.preset("llama-tiny")
CONFIGS = {
    "gpt2": models.preset("gpt2-tiny"),
    "gpt2, untied": models.preset("gpt-tiny", tie_embeddings=False),
    "llama": LLAMA,
    "llama, untied, with biases": dataclasses.replace(LLAMA, tie_embeddings=False, use_bias=True),
    "llama, llama3 scaling": models.preset("llama3-tiny"),
    "llama, linear scaling": dataclasses.replace(LLAMA, position=Rotary(5e5, 4.0)),
    "llama, yarn scaling": dataclasses.replace(
        LLAMA, position=Rotary(1e4, YarnScaling(4.0, 32, 16.0, 2.0, 1.3, False))
    ),
    "llama, wide heads": dataclasses.replace(LLAMA, head_dim=32),
    "opt": models.preset("gpt3-tiny", window_pattern="L", activation="relu", norm_position="post"),
    "gpt_neox": models.preset(
        "gpt-tiny", position=Rotary(fraction=0.25), parallel_residual=True, tie_embeddings=False
    ),
    "gpt_neox, one after the other, without biases": models.preset(
        *("gpt-tiny",),
        position=Rotary(2e4, fraction=0.5),
        use_bias=False,
        feed_forward_bias=True,
    ),
    "mistral": models.preset("mistral-tiny"),
    "mixtral": models.preset("mixtral-tiny"),
    "qwen2": models.preset("qwen2.5-tiny"),
    "qwen2, a window above": models.preset(
        "qwen2.5-tiny", sliding_window=9, window_pattern="LS", tie_embeddings=False
    ),
    "smollm3": models.preset("smollm3-tiny", num_layers=4),
    "phi3": models.preset(
        "phi3-tiny", position=Rotary(2e4, fraction=0.5), sliding_window=None, tie_embeddings=True
    ),
    "qwen3": models.preset("qwen3-tiny"),
    "qwen3, a window above": models.preset("qwen3-tiny", sliding_window=9, window_pattern="LS"),
    "gemma2": models.preset("gemma2-tiny"),
    "gemma3_text": models.preset("gemma3-tiny"),
    "bert": models.preset("bert-tiny"),
    "bert, minilm": models.preset("minilm-tiny"),
    "roberta": models.preset("roberta-tiny"),
    "distilbert": models.preset("distilbert-tiny"),
    "t5": models.preset("t5-tiny"),
    "t5, first version": models.preset(
        "t5-tiny", activation="relu", gated=False, tie_embeddings=True, logit_scale=64**-0.5
    ),
    "t5, uneven": models.preset("t5-tiny", num_decoder_layers=3),
}


def weights(model):
    return {v.path: np.asarray(v) for v in model.variables if "seed_generator" not in v.path}


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for path in first:
        np.testing.assert_array_equal(first[path], second[path], err_msg=path)


@pytest.mark.parametrize("name", CONFIGS)
def test_families_round_trip_bit_exact(name, tmp_path, randomize):
    model = randomize(models.build(CONFIGS[name]))
    to_hugging_face(model, tmp_path / "folder")
    row = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert row["model_type"] == name.split(",")[0]
    assert row["architectures"] == [FAMILIES[row["model_type"]].architectures[None]]
    loaded = load_model(tmp_path / "folder")
    assert_same_weights(model, loaded)
    assert describe(loaded.config) == describe(model.config)
    ids = np.random.default_rng(1).integers(1, 512, (2, 20))
    inputs = {
        models.CausalLM: ids,
        models.Encoder: [ids, ids != 1, ids % 2][: len(model.inputs)],
        models.Seq2Seq: [ids, ids[:, :7]],
    }[type(model)]
    np.testing.assert_array_equal(model(inputs), loaded(inputs))


@pytest.mark.parametrize(
    "head, family",
    [
        ("masked_lm", "bert"),
        ("masked_lm", "roberta"),
        ("masked_lm", "distilbert"),
        ("text_classifier", "bert"),
        ("text_classifier", "roberta"),
        ("token_classifier", "distilbert"),
        ("span_qa", "roberta"),
        ("next_sentence", "bert"),
    ],
)
def test_heads_round_trip_bit_exact(head, family, tmp_path, randomize):
    options = {"num_classes": 3} if "classifier" in head else {}
    model = randomize(getattr(models, head)(models.preset(f"{family}-tiny"), **options))
    to_hugging_face(model, tmp_path / "folder")
    loaded = load_model(tmp_path / "folder")
    assert loaded.head == head and loaded.options.get("num_classes") == options.get("num_classes")
    assert_same_weights(model, loaded)


def test_distilbert_classifier(tmp_path, randomize):
    config = models.preset("distilbert-tiny")
    model = randomize(models.text_classifier(config, 3, activation="relu", dropout=0.3))
    to_hugging_face(model, tmp_path / "folder")
    row = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert row["architectures"] == ["DistilBertForSequenceClassification"]
    loaded = load_model(tmp_path / "folder")
    assert loaded.options == {**model.options, "pooling": "first"}
    assert_same_weights(model, loaded)
    ids = np.random.default_rng(1).integers(1, 512, (2, 9))
    first = np.asarray(loaded.get_layer("backbone")([ids, ids > 0]))[:, 0]
    w = safetensors.numpy.load_file(tmp_path / "folder" / "model.safetensors")
    pooled = np.maximum(first @ w["pre_classifier.weight"].T + w["pre_classifier.bias"], 0)
    expected = pooled @ w["classifier.weight"].T + w["classifier.bias"]
    np.testing.assert_allclose(loaded([ids, ids > 0]), expected, atol=1e-4)
    with pytest.raises(InputError, match="activation"):
        models.text_classifier(config, 3, activation="gelu")


def test_adapters_are_merged_when_writing(tmp_path, randomize):
    model = models.causal_lm(LLAMA)
    training.add_lora(model, rank=2)
    randomize(model)
    to_hugging_face(model, tmp_path / "folder")
    assert_same_weights(load_model(tmp_path / "folder"), training.merge_lora(model))


def test_bfloat16_model_round_trip(tmp_path, randomize):
    model = randomize(models.causal_lm(LLAMA, dtype="bfloat16"))
    to_hugging_face(model, tmp_path / "folder")
    stored = safetensors.numpy.load_file(tmp_path / "folder" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {"bfloat16"}
    assert_same_weights(model, load_model(tmp_path / "folder", dtype="bfloat16"))
    as_float32 = weights(load_model(tmp_path / "folder"))
    for path, weight in weights(model).items():
        np.testing.assert_array_equal(as_float32[path], weight.astype("float32"))


def test_unsupported_models_raise_error():
    for change, message in (
        ({"num_sink_tokens": 2, "sliding_window": 8}, "num_sink_tokens=2"),
        ({"position": Rotary(1e4, NTKScaling(2.0))}, "NTKScaling"),
        ({"parallel_residual": True}, "parallel_residual=True"),
        ({"activation": "tanh"}, "no Hugging Face family"),
    ):
        with pytest.raises(InputError, match=message):
            describe(dataclasses.replace(LLAMA, **change))
    with pytest.raises(InputError, match="position"):
        describe(models.preset("lamda-tiny"))
    with pytest.raises(InputError, match="no Hugging Face family supports a reward head"):
        describe(models.preset("bert-tiny"), "reward")


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory, randomize):
    path = tmp_path_factory.mktemp("shared") / "llama"
    to_hugging_face(randomize(models.causal_lm(LLAMA)), path)
    return path


@pytest.fixture
def folder(shared_folder, tmp_path):
    """Return a copy of the folder, which a test may change."""
    return shutil.copytree(shared_folder, tmp_path / "llama")


def edit_config(folder, **changes):
    path = folder / "config.json"
    row = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in row.items() if v is not KeyError}))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


LAYER = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(LAYER), rf"tensor '{LAYER}' of shape \(176, 64\) is missing\."),
        (
            lambda t: t.update({LAYER: t[LAYER].T.copy()}),
            rf"tensor '{LAYER}' has shape \(64, 176\), expected \(176, 64\)",
        ),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[LAYER]}),
            r"tensor 'model.layers.2.mlp.up_proj.weight' of shape \(176, 64\) is not part of",
        ),
        (
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
            "tensor 'lm_head.weight' differs from 'model.embed_tokens.weight'",
        ),
        (lambda t: t.clear() or t.update(x=np.zeros(2, "float32")), r"20 more such problems"),
        (
            lambda t: t.update({LAYER: t[LAYER].astype("int32")}),
            f"tensor '{LAYER}' has dtype I32; it must be one of F64, F32, F16, BF16",
        ),
    ],
)
def test_mismatched_tensors_raise_error(folder, change, message):
    edit_tensors(folder, change)
    with pytest.raises(InputError, match=message) as error:
        load_model(folder)
    assert "model.safetensors" in str(error.value)


def test_mismatched_tensors_raise_error_before_building(folder, monkeypatch):
    read, allocated = [], []
    monkeypatch.setattr(Tensors, "__getitem__", lambda self, name: read.append(name))
    monkeypatch.setattr(weight_mapping, "allocate", lambda *args: allocated.append(args))
    edit_tensors(folder, lambda t: t.pop(LAYER))
    with pytest.raises(InputError):
        load_model(folder)
    assert not read and not allocated


def test_tied_copies_and_buffers_are_ignored(folder):
    expected = load_model(folder)

    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, "float32")

    edit_tensors(folder, change)
    assert_same_weights(expected, load_model(folder))


def test_tensors_without_head_prefix(tmp_path, randomize):
    model = randomize(models.causal_lm(models.preset("gpt2-tiny")))
    to_hugging_face(model, tmp_path / "gpt2")

    def change(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 8, 8), "float32")

    edit_tensors(tmp_path / "gpt2", change)
    assert_same_weights(model, load_model(tmp_path / "gpt2"))


def test_old_norm_names(tmp_path, randomize):
    model = randomize(models.encoder(models.preset("bert-tiny")))
    to_hugging_face(model, tmp_path / "bert")

    def change(tensors):
        for name in list(tensors):
            if ".LayerNorm." in name:
                old = name.replace(".weight", ".gamma").replace(".bias", ".beta")
                tensors[old] = tensors.pop(name)
        tensors["cls.seq_relationship.bias"] = np.zeros(2, "float32")

    edit_tensors(tmp_path / "bert", change)
    assert_same_weights(model, load_model(tmp_path / "bert"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "rwkv"}, "`model_type` is 'rwkv'; it must be one of gpt2, opt"),
        ({"model_type": KeyError}, "`model_type` is None"),
        ({"model_type": ["llama"]}, "`model_type` is .'llama'."),
        ({"num_hidden_layers": 10**12}, "`num_hidden_layers` must be in 0 .. 10000"),
        ({"hidden_act": "mish"}, "`hidden_act` must be one of gelu, .*; got 'mish'"),
        ({"hidden_size": KeyError}, "`hidden_size` must be present; got nothing"),
        ({"hidden_size": "64"}, "`hidden_size` must be an int; got '64'"),
        ({"num_attention_heads": 5, "head_dim": KeyError}, "num_key_value_heads"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config`.*GGUF"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "`rope_scaling.type`.*'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "`rope_scaling.rope_type` must be one of"),
        ({"rope_scaling": {"rope_type": "linear"}}, "`rope_scaling.factor` must be present"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "`factor` must be >= 1"),
        ({"rope_parameters": {"rope_type": "mine"}}, "`rope_parameters.rope_type`"),
        ({"rope_scaling": 3}, "`rope_scaling` must be an object"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` must be 1.0"),
    ],
)
def test_unsupported_fields_raise_error(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(InputError, match=message) as error:
        load_model(folder)
    assert str(folder / "config.json") in str(error.value)


UNUSUAL_VALUES = (None, -1, 0, 1.5, "x", True, [], {}, {"a": 1}, 10**12)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gemma3", "roberta", "t5"])
def test_unusual_field_values_are_read_or_raise_error(family, tmp_path, monkeypatch):
    model = models.build(models.preset(f"{family}-tiny", num_layers=1))
    to_hugging_face(model, tmp_path / "folder")
    build = functools.cache(models.build)  # most fields do not change the config
    monkeypatch.setattr(models, "build", lambda config, *args, **kwargs: build(config))
    monkeypatch.setattr(weight_mapping, "assign", lambda *args: None)
    path = tmp_path / "folder" / "config.json"
    row = json.loads(path.read_text())
    errors = 0
    for name in row:
        for value in UNUSUAL_VALUES:
            path.write_text(json.dumps({**row, name: value}))
            try:
                load_model(tmp_path / "folder")
            except InputError as error:
                errors += 1
                assert "config.json" in str(error) or "model.safetensors" in str(error)
    assert errors > 4 * len(row)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff"])
def test_invalid_config_json_raises_error(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"config.json"):
        load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config.json is missing"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes, position",
    [
        ({"rope_theta": KeyError}, Rotary(10000.0)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rotary(5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, Rotary(1e4, 2.0)),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 3e4}},
            Rotary(3e4, 2.0),
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            Rotary(1e4, Llama3Scaling(8.0, 1.0, 4.0, 64)),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 32}},
            Rotary(1e4, YarnScaling(4.0, 32)),
        ),
    ],
)
def test_rotary_positions_of_all_format_versions(folder, changes, position):
    edit_config(folder, **changes)
    assert load_model(folder).config.position == position


def test_text_generation_task_with_chat_template(folder, tmp_path, randomize):
    tok = tokenizers.BytePair.train(["once upon a time, there was a fox"] * 5, 300)
    config = dataclasses.replace(LLAMA, vocabulary_size=tok.vocabulary_size)
    model = randomize(models.causal_lm(config))
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    metadata = {"chat_template": template, "end_token_ids": [7]}
    task = keras_llm.TextGeneration(model, tok, metadata)
    to_hugging_face(task, tmp_path / "out")
    loaded = from_hugging_face(tmp_path / "out")
    assert loaded.end_token_ids == task.end_token_ids == (tok.eos_id, 7)
    assert isinstance(loaded, keras_llm.TextGeneration)
    assert loaded.metadata["chat_template"] == template
    assert loaded.tokenizer.encode("a fox") == tok.encode("a fox")
    assert loaded("once", max_new_tokens=8, temperature=0) == task(
        "once", max_new_tokens=8, temperature=0
    )
    with pytest.raises(InputError, match="out exists"):
        to_hugging_face(task, tmp_path / "out")
    to_hugging_face(task, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "chat_template.jinja").unlink()
    config = tmp_path / "out" / "tokenizer_config.json"
    templates = [{"name": "default", "template": "x"}, {"name": "tools", "template": "y"}]
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": templates}))
    assert from_hugging_face(tmp_path / "out").metadata["chat_template"] == "x"


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_text_embedding_task_keeps_pooling(pooling, normalize, tmp_path, randomize):
    tok = tokenizers.WordPiece.train(["once upon a time, there was a fox"] * 5, 80)
    model = models.sentence_embedder(models.preset("minilm-tiny"), pooling, normalize)
    task = keras_llm.TextEmbedding(randomize(model), tok)
    to_hugging_face(task, tmp_path / "out")
    loaded = from_hugging_face(tmp_path / "out")
    assert loaded.model.options["pooling"] == pooling
    texts = ["once", "upon a time, there was", "fox"]
    np.testing.assert_array_equal(loaded(texts), task(texts))


def test_unsupported_sentence_transformers_files_raise_error(tmp_path):
    tok = tokenizers.WordPiece.train(["once upon a time"] * 5, 80)
    task = keras_llm.TextEmbedding(models.sentence_embedder(models.preset("minilm-tiny")), tok)
    to_hugging_face(task, tmp_path / "out")
    path = tmp_path / "out" / "1_Pooling" / "config.json"
    path.write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(InputError, match=r"1_Pooling.*got pooling_mode_max_tokens"):
        from_hugging_face(tmp_path / "out")
    (tmp_path / "out" / "modules.json").write_text('[{"type": "x.Dense"}]')
    with pytest.raises(InputError, match=r"modules.json.*got x.Dense"):
        from_hugging_face(tmp_path / "out")


def test_translation_task(tmp_path, randomize):
    tok = tokenizers.SentencePiece.train(["guten tag", "good day"] * 9, 275, "bpe")
    model = randomize(models.seq2seq(models.preset("t5-tiny", vocabulary_size=275, start_id=1)))
    to_hugging_face(keras_llm.Translation(model, tok), tmp_path / "out")
    loaded = from_hugging_face(tmp_path / "out")
    assert isinstance(loaded, keras_llm.Translation)
    assert loaded.model.config.start_id == 1
    assert loaded("guten", max_new_tokens=5) == keras_llm.Translation(model, tok)(
        "guten", max_new_tokens=5
    )


def test_invalid_task_or_model_raises_error(tmp_path):
    with pytest.raises(InputError, match=r"`task_or_model` must be a task or a model"):
        to_hugging_face("model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantized_model_raises_error(tmp_path):
    model = models.build(LLAMA)
    model.get_layer("block_0").feed_forward.up.quantize("int8")
    with pytest.raises(InputError, match=r"the model is quantized.*write the model that was"):
        to_hugging_face(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
