"""Test fields of Hugging Face folders that change what a model computes."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tokenizers as rust

import keras_llm
from keras_llm import models, tokenizers
from keras_llm.checkpoints import from_hugging_face, load_model, to_hugging_face
from keras_llm.errors import InputError
from keras_llm.layers import Rotary, YarnScaling
from keras_llm.tasks.explanation import explain

LLAMA = models.preset("llama-tiny", num_layers=1)
TEXTS = ["a paraphrase says the same", "in other words", "is it true"]
IDS = np.array([[5, 6, 7, 8, 20, 30]])


def edit(path, **changes):
    row = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in row.items() if v is not KeyError}))


def edit_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory, randomize):
    """Return a function that writes a model's folder, which a test may change."""
    folders = {}

    def write(config):
        if config not in folders:
            folders[config] = tmp_path_factory.mktemp("model") / "folder"
            to_hugging_face(randomize(models.build(config)), folders[config])
        return shutil.copytree(folders[config], tmp_path_factory.mktemp("copy") / "folder")

    return write


@pytest.mark.parametrize(
    "changes, position",
    [
        (
            {
                "rope_theta": 5e5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
            Rotary(5e5, 2.0),
        ),
        (
            {
                "rope_theta": KeyError,
                "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0},
                "rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 32},
            },
            Rotary(1e4, YarnScaling(4.0, 32)),
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0}, "rope_scaling": {}},
            Rotary(1e4, 4.0),
        ),
    ],
)
def test_rope_scaling_takes_precedence(changes, position, folder_of):
    folder = folder_of(LLAMA)
    edit(folder / "config.json", **changes)
    assert load_model(folder).config.position == position


def test_gemma3_merges_rope_scaling_into_full_attention(folder_of):
    folder = folder_of(models.preset("gemma3-tiny"))
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0},
    }
    edit(folder / "config.json", rope_parameters=nested, rope_scaling={"rope_type": "default"})
    config = load_model(folder).config
    assert (config.position, config.local_position) == (Rotary(500.0), Rotary(50.0, 3.0))


LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    "preset, changes, message",
    [
        ("llama", {"rope_theta": float("nan")}, "`rope_theta` must be a finite number; got nan"),
        ("llama", {"rms_norm_eps": float("inf")}, "`rms_norm_eps` must be a finite number"),
        ("llama", {"rope_scaling": {**LINEAR, "factor": float("nan")}}, "`rope_scaling.factor`"),
        ("llama", {"rope_scaling": {"full_attention": LINEAR}}, "`rope_scaling.full_attention`"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 0}},
            "`rope_scaling.original_max_position_embeddings` must be at least 1; got 0",
        ),
        (
            "llama",
            {"rope_scaling": {"rope_type": "yarn"}, "max_position_embeddings": 0},
            "`max_position_embeddings` must be at least 1",
        ),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "beta_fast": -1.0}}, "`beta_fast`"),
        (
            "llama",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 2.0,
                    "high_freq_factor": 2.0,
                }
            },
            "`high_frequency_factor` must be greater",
        ),
        ("llama", {"is_causal": False}, "`is_causal` must be True"),
        ("t5", {"relative_attention_max_distance": 8}, "`relative_attention_max_distance` must be"),
        ("t5", {"is_gated_act": False}, "`is_gated_act` must be True"),
        ("t5", {"dense_act_fn": "relu"}, "`dense_act_fn` must be 'gelu_new'"),
        ("gpt2", {"is_causal": False}, "`is_causal` must be True"),
        ("llama", {"per_layer_config": {"0": {}}}, "`per_layer_config` must be None"),
        ("gemma3", {"attn_logit_softcapping": 2.0}, "`attn_logit_softcapping` must be None"),
        ("gemma3", {"rope_parameters": LINEAR}, "`rope_parameters.rope_type` must be in full"),
        ("gemma3", {"rope_scaling": {"type": "linear"}}, "`rope_scaling.rope_type`"),
        ("gemma2", {"sliding_window": None}, "`layer_types` must not have 'sliding_attention'"),
        ("qwen3", {"layer_types": ["sliding_attention"]}, "`layer_types` must not have 'sliding"),
        ("gemma3", {"layer_types": KeyError, "sliding_window_pattern": 0}, "at least 1; got 0"),
    ],
)
def test_unsupported_values_raise_error(preset, changes, message, folder_of):
    folder = folder_of(models.preset(f"{preset}-tiny", num_layers=1))
    edit(folder / "config.json", **changes)
    with pytest.raises(InputError, match=message) as error:
        load_model(folder)
    assert str(folder / "config.json") in str(error.value)


@pytest.mark.parametrize(
    "preset, name",
    [
        ("llama", "lm_head.weight"),
        ("gpt2", "lm_head.weight"),
        ("t5", "encoder.embed_tokens.weight"),
    ],
)
def test_tied_matrix_under_another_name(preset, name, folder_of):
    folder = folder_of(models.preset(f"{preset}-tiny", num_layers=1))
    embedding = {"llama": "model.embed_tokens", "gpt2": "transformer.wte", "t5": "shared"}[preset]
    expected = load_model(folder)
    edit_tensors(folder, lambda t: t.update({name: t.pop(f"{embedding}.weight")}))
    inputs = [IDS, IDS] if preset == "t5" else IDS
    np.testing.assert_array_equal(load_model(folder)(inputs), expected(inputs))


def test_embedding_of_an_untied_model_is_required(folder_of):
    folder = folder_of(dataclasses.replace(LLAMA, tie_embeddings=False))
    edit_tensors(folder, lambda t: t.pop("model.embed_tokens.weight"))
    with pytest.raises(InputError, match=r"'model.embed_tokens.weight' of .* is missing"):
        load_model(folder)


@pytest.mark.parametrize("preset", ["llama", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("attention, feed_forward", [(True, False), (False, True)])
def test_biases_of_attention_and_feed_forward(preset, attention, feed_forward, folder_of):
    if preset != "llama" and feed_forward:
        feed_forward = None
    config = models.preset(
        f"{preset}-tiny", num_layers=1, use_bias=attention, feed_forward_bias=feed_forward
    )
    folder = folder_of(config)
    names = safetensors.numpy.load_file(folder / "model.safetensors")
    assert ("model.layers.0.self_attn.o_proj.bias" in names) == attention
    assert ("model.layers.0.mlp.down_proj.bias" in names) == bool(feed_forward)
    model = load_model(folder)
    assert model.config.use_bias == attention
    weights = {variable.path: np.asarray(variable) for variable in model.variables}
    assert ("block_0/feed_forward/down/bias" in weights) == bool(feed_forward)
    if attention:
        bias = weights["block_0/self_attention/output/bias"]
        np.testing.assert_array_equal(bias, names["model.layers.0.self_attn.o_proj.bias"])
    rebuilt = models.restore(models.describe(model))
    assert {v.path for v in rebuilt.variables} == set(weights)


@pytest.mark.parametrize("preset", ["gemma2", "gemma3"])
def test_models_without_windows_write_no_null(preset, folder_of):
    config = models.preset(
        f"{preset}-tiny", sliding_window=None, window_pattern=None, local_position=None
    )
    folder = folder_of(config)
    row = json.loads((folder / "config.json").read_text())
    assert set(row["layer_types"]) == {"full_attention"} and "sliding_window" not in row
    assert load_model(folder).config.sliding_window is None


def test_second_token_type_of_roberta(folder_of, tmp_path, randomize):
    folder = folder_of(models.preset("roberta-tiny", num_layers=1))
    name = "embeddings.token_type_embeddings.weight"
    rows = np.random.default_rng(0).normal(size=(2, 64)).astype("float32")

    def change(tensors):
        key = next(key for key in tensors if key.endswith(name))
        tensors[key] = rows

    edit_tensors(folder, change)
    edit(folder / "config.json", type_vocab_size=2)
    model = load_model(folder)
    mask, types = np.ones_like(IDS, bool), IDS % 2
    table = {v.path: np.asarray(v) for v in model.variables}["segment_embedding/embeddings"]
    np.testing.assert_array_equal(table, rows)
    assert np.abs(model([IDS, mask, types]) - model([IDS, mask, types * 0])).max() > 0.01
    to_hugging_face(model, tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == "roberta"
    reloaded = load_model(tmp_path / "ours")
    np.testing.assert_array_equal(reloaded([IDS, mask, types]), model([IDS, mask, types]))


def test_masked_lm_head_of_roberta_has_gelu(tmp_path, randomize):
    """The head of RoBERTa does not read `hidden_act`, the one of BERT does."""
    config = models.preset("roberta-tiny", num_layers=1)
    to_hugging_face(randomize(models.masked_lm(config)), tmp_path / "theirs")
    edit(tmp_path / "theirs" / "config.json", hidden_act="relu")
    model = load_model(tmp_path / "theirs")
    assert model.config.activation == "relu" and model.options == {"activation": "gelu"}
    head = model.get_layer("masked_lm_head")
    assert head.get_config()["intermediate_activation"] == "gelu"
    to_hugging_face(model, tmp_path / "ours")
    row = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (row["model_type"], row["hidden_act"]) == ("roberta", "relu")
    relu = models.masked_lm(dataclasses.replace(config, activation="relu"))
    with pytest.raises(InputError, match="no Hugging Face family supports this model"):
        to_hugging_face(relu, tmp_path / "refused")


def test_questions_for_roberta_have_one_segment():
    tok = tokenizers.WordPiece.train(TEXTS * 9, 90)
    config = models.preset("bert-tiny", vocabulary_size=tok.vocabulary_size)
    model = models.span_qa(config)
    ids = np.array([[2, 5, 6, 3]], "int32")
    for separators, last in ((1, 1), (2, 0)):
        task = keras_llm.QuestionAnswering(model, tok, metadata={"num_separators": separators})
        segments = task.inputs(ids, np.array([4]), np.array([[0, 0, 1, 1]]))["segment_ids"]
        assert np.asarray(segments)[0, -1] == last


@pytest.fixture(scope="module")
def word_piece():
    return tokenizers.WordPiece.train(TEXTS * 9, 90)


def classifier_folder(path, tok, count, randomize, family="bert", **changes):
    """Write the folder of a classifier with `count` outputs."""
    config = models.preset(f"{family}-tiny", num_layers=1, vocabulary_size=tok.vocabulary_size)
    options = {"activation": "relu"} if family == "distilbert" else {}
    model = randomize(models.text_classifier(config, max(count, 2), **options))
    task = keras_llm.TextClassification(model, tok, [f"L{i}" for i in range(max(count, 2))])
    to_hugging_face(task, path)

    def cut(tensors):
        for name in [n for n in tensors if n.startswith(("classifier.weight", "classifier.bias"))]:
            tensors[name] = tensors[name][:count].copy()

    edit_tensors(path, cut)
    labels = {str(i): f"L{i}" for i in range(count)}
    edit(path / "config.json", id2label=labels, **changes)
    return path, task


def logits_of(task, texts):
    rows = [[*task.begin, *task.tokenizer.encode(text), *task.end] for text in texts]
    return np.array([task.outputs(np.array([ids]), np.array([len(ids)]))[0] for ids in rows])


IDENTITY = {"activation_fn": "torch.nn.modules.linear.Identity"}


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize(
    "changes, with_sigmoid",
    [
        ({}, True),
        ({"problem_type": "regression"}, False),
        ({"problem_type": "multi_label_classification"}, True),
        ({"sentence_transformers": IDENTITY}, False),
        ({"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}, True),
    ],
)
def test_classifier_with_one_output(family, changes, with_sigmoid, word_piece, tmp_path, randomize):
    folder, two = classifier_folder(tmp_path / "one", word_piece, 1, randomize, family, **changes)
    logits = logits_of(two, TEXTS)[:, 0]
    expected = 1 / (1 + np.exp(-logits)) if with_sigmoid else logits
    task = from_hugging_face(folder)
    assert isinstance(task, keras_llm.TextRegression)
    np.testing.assert_allclose(task(TEXTS), expected, rtol=1e-4)
    ids = np.array([[2, 5, 6, 3]])
    inputs = [ids, ids > 0, ids * 0][: len(two.model.inputs)]
    np.testing.assert_allclose(load_model(folder)(inputs), two.model(inputs)[:, 0], rtol=1e-4)
    to_hugging_face(task, tmp_path / "again")
    assert from_hugging_face(tmp_path / "again")(TEXTS) == task(TEXTS)
    task.save(tmp_path / "task")
    assert keras_llm.load(tmp_path / "task")(TEXTS) == task(TEXTS)


def test_independent_labels(word_piece, tmp_path, randomize):
    folder, single = classifier_folder(
        tmp_path / "x", word_piece, 3, randomize, problem_type="multi_label_classification"
    )
    task = from_hugging_face(folder)
    details = task(TEXTS, return_details=True)
    probabilities = [list(row.probabilities.values()) for row in details]
    expected = 1 / (1 + np.exp(-logits_of(single, TEXTS)))
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    assert [row.label for row in details] == single(TEXTS)
    attributions = explain(task, TEXTS[0]).attributions
    assert attributions["output"] == pytest.approx(np.log(details[0].probability), abs=1e-4)
    to_hugging_face(task, tmp_path / "again")
    again = from_hugging_face(tmp_path / "again")(TEXTS, return_details=True)
    assert again == details
    for call in (task.fit, task.evaluate):
        with pytest.raises(InputError, match="multi_label"):
            call([("in other words", "L0")])


@pytest.mark.parametrize(
    "count, changes, message",
    [
        (3, {"problem_type": "regression"}, "`problem_type` must not be 'regression' for several"),
        (1, {"problem_type": "single_label_classification"}, "for one label"),
        (3, {"problem_type": "ranking"}, "`problem_type` must be one of regression, single"),
        (1, {"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}}, "`sentence_trans.*Tanh"),
        (3, {"classifier_dropout": -0.1}, r"`classifier_dropout` must be in \[0, 1\)"),
    ],
)
def test_unsupported_classifiers_raise_error(
    count, changes, message, word_piece, tmp_path, randomize
):
    folder, _ = classifier_folder(tmp_path / "x", word_piece, count, randomize, **changes)
    with pytest.raises(InputError, match=message):
        from_hugging_face(folder)


def embedder(config_or_model, tok, randomize, **options):
    model = models.sentence_embedder(config_or_model, **options)
    return keras_llm.TextEmbedding(randomize(model), tok)


@pytest.mark.parametrize("pooling", [None, "mean", "last"])
def test_decoder_embedder(pooling, tmp_path, randomize):
    tok = tokenizers.BytePair.train(TEXTS * 9, 280)
    config = dataclasses.replace(LLAMA, vocabulary_size=tok.vocabulary_size)
    task = embedder(config, tok, randomize, pooling=pooling)
    to_hugging_face(task, tmp_path / "out")
    loaded = from_hugging_face(tmp_path / "out")
    assert isinstance(loaded, keras_llm.TextEmbedding)
    np.testing.assert_array_equal(loaded(TEXTS), task(TEXTS))
    # The written tokenizer adds the same tokens, and what another one adds is read.
    path = tmp_path / "out" / "tokenizer.json"
    theirs = rust.Tokenizer.from_file(str(path))
    assert theirs.encode(TEXTS[0]).ids == [*task.begin, *tok.encode(TEXTS[0]), *task.end]
    for single, begin, end in (("$A", [], []), ("x $A y y", [7], [9, 9])):
        theirs.post_processor = rust.processors.TemplateProcessing(
            single=single, special_tokens=[("x", 7), ("y", 9)]
        )
        theirs.save(str(path))
        loaded = from_hugging_face(tmp_path / "out")
        assert (loaded.begin, loaded.end) == (begin, end)
    assert loaded.room == config.max_length - 3


def test_decoder_embedder_without_a_head(tmp_path, randomize):
    tok = tokenizers.BytePair.train(TEXTS * 9, 280)
    config = dataclasses.replace(LLAMA, vocabulary_size=tok.vocabulary_size, tie_embeddings=False)
    task = embedder(config, tok, randomize)
    to_hugging_face(task, tmp_path / "out")
    expected = from_hugging_face(tmp_path / "out")(TEXTS)
    edit(tmp_path / "out" / "config.json", architectures=["LlamaModel"])

    def change(tensors):
        del tensors["lm_head.weight"]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(tmp_path / "out", change)
    np.testing.assert_array_equal(from_hugging_face(tmp_path / "out")(TEXTS), expected)


MODULES = [
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ("2_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
]


def write_modules(folder, count=3):
    rows = [{"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(MODULES)]
    (folder / "modules.json").write_text(json.dumps(rows[:count]))


@pytest.mark.parametrize("name, pooling", [("mean", "mean"), ("cls", "first"), (["mean"], "mean")])
def test_modules_of_sentence_transformers_5_4(name, pooling, word_piece, tmp_path, randomize):
    config = models.preset("minilm-tiny", vocabulary_size=word_piece.vocabulary_size)
    task = embedder(config, word_piece, randomize, pooling=pooling)
    folder = tmp_path / "out"
    to_hugging_face(task, folder)
    write_modules(folder)
    row = {"embedding_dimension": 64, "pooling_mode": name, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(row))
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    row = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": text},
        "module_output_name": "token_embeddings",
        "max_seq_length": 6,
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(row))
    prompts = {"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    loaded = from_hugging_face(folder)
    np.testing.assert_array_equal(loaded("true"), task("true"))
    text = "in other words is it true"
    ids = word_piece.encode(text)[:4]
    cut = np.array([[*task.begin, *ids, *task.end]])
    np.testing.assert_allclose(
        loaded(text, truncate=True), task.outputs(cut, np.array([6]))[0], atol=1e-5
    )
    with pytest.raises(InputError, match="6 fit into the model's `max_length` of 6"):
        loaded(text)
    to_hugging_face(loaded, tmp_path / "again")
    assert from_hugging_face(tmp_path / "again").max_length == 6


@pytest.mark.parametrize(
    "file, row, message",
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "`pooling_mode` must be one of mean"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "cls"]}, "`pooling_mode`"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "`transformer_task`"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "`max_seq_length`"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
            "`default_prompt_name` must be null",
        ),
    ],
)
def test_unsupported_module_fields_raise_error(file, row, message, word_piece, tmp_path, randomize):
    config = models.preset("minilm-tiny", vocabulary_size=word_piece.vocabulary_size)
    to_hugging_face(embedder(config, word_piece, randomize), tmp_path / "out")
    (tmp_path / "out" / file).write_text(json.dumps(row))
    with pytest.raises(InputError, match=message) as error:
        from_hugging_face(tmp_path / "out")
    assert pathlib.Path(file).name in str(error.value)


def test_modules_of_a_cross_encoder(word_piece, tmp_path, randomize):
    folder, _ = classifier_folder(tmp_path / "x", word_piece, 1, randomize)
    write_modules(folder, count=1)
    assert isinstance(from_hugging_face(folder), keras_llm.TextRegression)


def test_spare_special_token(tmp_path, randomize):
    tok = tokenizers.BytePair.train(TEXTS * 9, 300)
    config = dataclasses.replace(LLAMA, vocabulary_size=tok.vocabulary_size)
    metadata = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    task = keras_llm.TextGeneration(randomize(models.causal_lm(config)), tok, metadata)
    to_hugging_face(task, tmp_path / "out")
    path = tmp_path / "out" / "tokenizer.json"
    theirs = rust.Tokenizer.from_file(str(path))
    theirs.add_special_tokens([rust.AddedToken("<image>", normalized=False)])
    theirs.save(str(path))
    loaded = from_hugging_face(tmp_path / "out")
    assert loaded.tokenizer.vocabulary_size == config.vocabulary_size + 1
    settings = {"max_new_tokens": 5, "temperature": 0}
    assert loaded("in other", **settings) == task("in other", **settings)
    pattern = {"regex": "[a-z ]+", **settings}
    assert loaded("in other", **pattern) == task("in other", **pattern)
    assert loaded("<image> words", **settings) == task("<image> words", **settings)
    with pytest.raises(InputError, match="`prompt` has the token '<image>', for which the model"):
        loaded("see <image>", parse_special=True, **settings)
    with pytest.raises(InputError, match="'<image>'"):
        loaded.chat("see <image>", **settings)


def test_padding_token_without_an_embedding_raises_error():
    tok = tokenizers.BytePair.train(TEXTS * 9, 300)
    size = tok.vocabulary_size
    tok = tokenizers.BytePair(
        tok.vocabulary, tok.merges, special_tokens={"[PAD]": size}, pad="[PAD]"
    )
    config = dataclasses.replace(LLAMA, vocabulary_size=size)
    with pytest.raises(InputError, match="larger than the model's `vocabulary_size`"):
        keras_llm.TextGeneration(models.causal_lm(config), tok)


def test_end_tokens_of_a_translation(tmp_path, randomize):
    tok = tokenizers.SentencePiece.train(TEXTS * 9, 275, "bpe")
    model = randomize(models.seq2seq(models.preset("t5-tiny", vocabulary_size=275, start_id=1)))
    task = keras_llm.Translation(model, tok, {"end_token_ids": [7]})
    to_hugging_face(task, tmp_path / "out")
    assert from_hugging_face(tmp_path / "out").end_token_ids == (tok.eos_id, 7)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan"), "x"])
def test_invalid_dropout_of_a_head_raises_error(dropout):
    config = models.preset("bert-tiny")
    for build in (models.text_classifier, models.token_classifier):
        with pytest.raises(InputError, match=r"`dropout` must be in \[0, 1\)"):
            build(config, 3, dropout=dropout)
    with pytest.raises(InputError, match=r"`dropout` must be in \[0, 1\)"):
        models.text_regressor(config, dropout=dropout)


def test_invalid_options_of_a_regressor_raise_error():
    config = models.preset("bert-tiny")
    with pytest.raises(InputError, match="`activation`"):
        models.text_regressor(config, activation="gelu")
    with pytest.raises(InputError, match="`output_activation`"):
        models.text_regressor(config, output_activation="softmax")
