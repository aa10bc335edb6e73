"""Test tasks from the causal language models of KerasHub: logits and greedy texts are equal."""

import inspect
import io

import keras_hub
import numpy as np
import pytest
import sentencepiece

import keras_llm
from keras_llm import checkpoints, models, tokenizers
from keras_llm.checkpoints.keras_hub.families import FAMILIES
from keras_llm.checkpoints.keras_hub.tokenizer import read_tokenizer
from keras_llm.errors import InputError

hub = keras_hub.models
TEXTS = ["the cat sat on the mat", "a dog ran over the hill", "it's 1234 days, (he said)!\n"] * 9
PROMPT = "the cat sat on"
LENGTH = 15  # tokens of prompt and text
SPECIAL = "<s> </s> <pad> <bos> <eos> <|endoftext|> <|im_end|> <|begin_of_text|> <|end_of_text|>"
SPECIAL += " <|eot_id|> <|start_header_id|> <|end_header_id|> <think> </think>"
GROUPED = {
    "vocabulary_size": 330,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 24,
    "intermediate_dim": 36,
}
HEADS = {
    "vocabulary_size": 330,
    "num_layers": 2,
    "num_heads": 3,
    "hidden_dim": 24,
    "intermediate_dim": 36,
}
SCALED = {"rope_max_wavelength": 500, "rope_scaling_factor": 2.0, "layer_norm_epsilon": 1e-3}
LLAMA3 = {
    "rope_frequency_adjustment_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 16,
}
GEMMA = {
    **GROUPED,
    "head_dim": 10,
    "final_logit_soft_cap": 8.0,
    "attention_logit_soft_cap": 5.0,
    "use_sliding_window_attention": True,
    "sliding_window_size": 4,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
}
SMOLLM3 = {
    **{name: value for name, value in GROUPED.items() if name != "num_query_heads"},
    "num_attention_heads": 4,
    "attention_bias": True,
    "attention_dropout": 0.1,
    "rope_layer_enabled_list": [True, False],
    "layer_types": ["full_attention"] * 2,
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-3,
    "max_position_embeddings": 32,
    "rope_theta": 500.0,
    "partial_rotary_factor": 1.0,
}
QWEN3_MOE = {
    **GROUPED,
    "moe_intermediate_dim": 20,
    "num_experts": 5,
    "top_k": 2,
    "norm_top_k_prob": True,
    "head_dim": 10,
    "sliding_window_size": 4,
}
# The class of a backbone, its arguments, and the class of the tokenizer, or None.
MODELS = {
    "gpt2": ("GPT2", {**HEADS, "max_sequence_length": 20}, "GPT2Tokenizer"),
    "opt": ("OPT", {**HEADS, "max_sequence_length": 20}, "OPTTokenizer"),
    "bloom": ("Bloom", {**HEADS, "layer_norm_epsilon": 1e-3}, "BloomTokenizer"),
    "gpt-neox": ("GPTNeoX", {**HEADS, "rotary_percentage": 0.5}, "GPTNeoXTokenizer"),
    "llama": ("Llama", {**GROUPED, "layer_norm_epsilon": 1e-3}, "LlamaTokenizer"),
    "llama 3": ("Llama3", {**GROUPED, **LLAMA3, "tie_word_embeddings": True}, "Llama3Tokenizer"),
    "mistral": (
        *("Mistral", {**GROUPED, **SCALED, "sliding_window": 4, "head_dim": 10}),
        "MistralTokenizer",
    ),
    "mixtral": (
        *("Mixtral", {**GROUPED, **SCALED, "sliding_window": 5, "num_experts": 4, "top_k": 3}),
        "MixtralTokenizer",
    ),
    "qwen": (
        "Qwen",
        {**GROUPED, **SCALED, "use_sliding_window_attention": True, "sliding_window_size": 4},
        "QwenTokenizer",
    ),
    "qwen3": ("Qwen3", {**GROUPED, "head_dim": 10, "sliding_window_size": 4}, "Qwen3Tokenizer"),
    "qwen3 moe": ("Qwen3Moe", QWEN3_MOE, "Qwen3MoeTokenizer"),
    "gemma": ("Gemma", {**GROUPED, "head_dim": 10}, "GemmaTokenizer"),
    "gemma 2": ("Gemma", GEMMA, "GemmaTokenizer"),
    "gemma 3": (
        "Gemma3",
        {
            **{**GEMMA, "num_layers": 6},
            **{"image_size": None, "local_rope_scaling_factor": 2.0},
            "global_rope_scaling_factor": 4.0,
        },
        "Gemma3Tokenizer",
    ),
    "phi3": ("Phi3", {**GROUPED, "rope_max_wavelength": 500}, "Phi3Tokenizer"),
    "smollm3": ("SmolLM3", SMOLLM3, "SmolLM3Tokenizer"),
}


@pytest.fixture(scope="module")
def proto():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=310,
        model_type="bpe",
        byte_fallback=True,
        control_symbols=[name for name in SPECIAL.split() if name not in ("<s>", "</s>")],
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def bpe():
    return tokenizers.BytePair.train(TEXTS, 325, special_tokens=SPECIAL.split())


def hub_tokenizer(name, proto, bpe):
    kind = getattr(keras_hub.tokenizers, name)
    if issubclass(kind, keras_hub.tokenizers.SentencePieceTokenizer):
        return kind(proto, **({"has_vision_tokens": False} if name == "Gemma3Tokenizer" else {}))
    return kind(dict(bpe.vocabulary), list(bpe.merges))


def hub_model(name, proto, bpe, randomize):
    kind, arguments, tokenizer = MODELS[name]
    tokenizer = hub_tokenizer(tokenizer, proto, bpe)
    arguments = {**arguments, "vocabulary_size": tokenizer.vocabulary_size()}
    backbone = getattr(hub, f"{kind}Backbone")(**arguments)
    frequencies = {id(v): np.asarray(v) for v in backbone.variables if "inv_freq" in v.path}
    randomize(backbone)
    for variable in backbone.variables:
        if id(variable) in frequencies:
            variable.assign(frequencies[id(variable)])
        elif len(variable.shape) > 1:
            variable.assign(variable / 3)
    preprocessor = getattr(hub, f"{kind}CausalLMPreprocessor")(tokenizer)
    task = getattr(hub, f"{kind}CausalLM")(backbone=backbone, preprocessor=preprocessor)
    task.compile(sampler="greedy", run_eagerly=True)
    return task


def logits(causal_lm, token_ids):
    return np.asarray(causal_lm({"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}))


def without_cache(causal_lm):
    """Return the greedy text of a model by forward passes over the whole text."""
    tokenizer = causal_lm.preprocessor.tokenizer
    ids = [tokenizer.start_token_id, *tokenizer(PROMPT).tolist()]
    while len(ids) < LENGTH and ids[-1] != tokenizer.end_token_id:
        ids.append(int(logits(causal_lm, np.array([ids]))[0, -1].argmax()))
    return tokenizer.detokenize([index for index in ids if index != tokenizer.end_token_id])


def greedy(task):
    """Return the greedy text of a task, without compiling its loop for every backbone."""
    prompt = task.tokenizer.encode_prompt(PROMPT)
    if task.metadata["source"] == "KerasHub, MistralCausalLM":
        return task(PROMPT, LENGTH - len(prompt), temperature=0.0)
    model, ids = task.model, []
    cache = models.init_cache(model, 1, LENGTH)
    scores, cache = models.prefill(model, np.array([prompt]), np.array([len(prompt)]), cache)
    while len(prompt) + len(ids) < LENGTH and (index := int(np.argmax(scores))) not in (
        task.end_token_ids
    ):
        position = np.array([[len(prompt) + len(ids)]])
        ids.append(index)
        scores, cache = models.decode(model, np.array([[index]]), position, cache)
    return task.tokenizer.decode_continuation(ids, prompt[-1])


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_greedy_text_match(name, proto, bpe, randomize):
    causal_lm = hub_model(name, proto, bpe, randomize)
    options = {}
    if name == "bloom":  # no tokenizer of this library splits words as Bloom's does
        roles = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}
        options["tokenizer"] = tokenizers.BytePair(
            bpe.vocabulary, bpe.merges, special_tokens=roles.values(), **roles
        )
    task = keras_llm.TextGeneration.from_keras_hub(causal_lm, **options)
    size = task.model.config.vocabulary_size
    token_ids = np.random.default_rng(0).integers(0, size, (2, 13)).astype("int32")
    actual, expected = np.asarray(task.model(token_ids)), logits(causal_lm, token_ids)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    # In KerasHub 0.32, a cached step of GPT-NeoX rotates the query as at position 0.
    generate = without_cache if name == "gpt-neox" else lambda m: m.generate(PROMPT, LENGTH)
    assert PROMPT + greedy(task) == generate(causal_lm)


# Arguments that a config does not describe, because they have no effect on text.
UNUSED = {
    "Gemma3Backbone": {"image_size", "pooling_intermediate_dim", "embedding_dim"},
    "MixtralBackbone": {"output_router_logits"},
    "Phi3Backbone": {
        *("rope_scaling_short_factor", "rope_scaling_long_factor"),
        "pretraining_sequence_length",
    },
}


class Recorder:
    """A backbone that records which of its attributes are read."""

    def __init__(self, backbone, names):
        self._backbone, self._names = backbone, names

    def __getattr__(self, name):
        self._names.add(name)
        return getattr(self._backbone, name)


def test_every_argument_of_a_backbone_is_used_or_refused():
    read = {}
    for kind, arguments, _ in MODELS.values():
        kind = f"{kind}Backbone"
        backbone = getattr(hub, kind)(**arguments)
        family = FAMILIES[kind]
        names = read.setdefault(family.read, {family.length})
        family.read(Recorder(backbone, names), 64)
    assert read.keys() == {family.read for family in FAMILIES.values()}
    for kind, family in FAMILIES.items():
        arguments = set(inspect.signature(getattr(hub, kind).__init__).parameters)
        # The token embedding has the value of `tie_word_embeddings`.
        used = {*read[family.read], "tie_word_embeddings"} | UNUSED.get(kind, set())
        assert arguments - used == {"self", "dtype", "kwargs"} - ({"dtype"} - arguments), kind


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        ("Gemma", {**GEMMA, "layer_norm_epsilon": 1e-5}, "`layer_norm_epsilon` is 1e-05"),
        ("Gemma", {**GEMMA, "query_head_dim_normalize": False}, "`query_head_dim_normalize` is F"),
        ("Gemma", {**GEMMA, "use_post_ffw_norm": False}, "`use_post_ffw_norm` is False; it must"),
        (
            "Gemma3",
            {**GEMMA, "image_size": None, "use_bidirectional_attention": True},
            "`use_bidirectional_attention` is True; only False",
        ),
        ("Qwen3", {**GROUPED, "head_dim": 6, "layer_norm_epsilon": 1e-3}, "at most 1e-05"),
        ("Qwen3Moe", {**QWEN3_MOE, "norm_top_k_prob": False}, "`norm_top_k_prob` is False"),
        ("Qwen3Moe", {**QWEN3_MOE, "mlp_only_layers": [0]}, r"`mlp_only_layers` is \[0\]"),
        ("Mixtral", {**GROUPED, "num_experts": 3, "router_jitter_noise": 0.1}, "jitter_noise` is"),
        (
            "Phi3",
            {
                **{**GROUPED, "rope_scaling_type": "su"},
                **{"rope_scaling_short_factor": [1.0] * 3, "rope_scaling_long_factor": [2.0] * 3},
            },
            "Phi3Backbone: `rope_scaling_type` is 'su'; only None is supported",
        ),
        ("SmolLM3", {**SMOLLM3, "layer_types": ["sliding_attention"] * 2}, "`layer_types` has"),
        (
            "Falcon",
            {**{n: v for n, v in HEADS.items() if n != "num_heads"}, "num_attention_heads": 3},
            "one of the classes GPT2Backbone, .*, got .*FalconBackbone",
        ),
    ],
)
def test_unsupported_backbones_are_refused_by_name(kind, arguments, message):
    backbone = getattr(hub, f"{kind}Backbone")(**{**arguments, "num_layers": 1})
    with pytest.raises(InputError, match=message):
        checkpoints.from_keras_hub(backbone)


def test_end_tokens_and_explicit_tokenizer(proto, bpe):
    backbone = hub.LlamaBackbone(**{**GROUPED, "num_layers": 1})
    preprocessor = hub.Llama3CausalLMPreprocessor(hub_tokenizer("Llama3Tokenizer", proto, bpe))
    task = keras_llm.TextGeneration.from_keras_hub(hub.LlamaCausalLM(backbone, preprocessor), 64)
    ends = [bpe.vocabulary[token] for token in ("<|end_of_text|>", "<|eot_id|>")]
    assert list(task.end_token_ids) == task.metadata["end_token_ids"] == ends
    assert task.model.config.max_length == 64
    assert task.metadata["source"] == "KerasHub, LlamaCausalLM"
    tokenizer = task.tokenizer
    assert tokenizer.encode_prompt("a dog") == [
        bpe.vocabulary["<|begin_of_text|>"],
        *bpe.encode("a dog"),
    ]
    assert keras_llm.TextGeneration.from_keras_hub(backbone, tokenizer=bpe).tokenizer is bpe
    with pytest.raises(InputError, match="`tokenizer` must be given, because `causal_lm` has no"):
        keras_llm.TextGeneration.from_keras_hub(hub.LlamaCausalLM(backbone))


def test_unsupported_tokenizers_are_refused_by_name(proto, bpe):
    refused = [
        (hub_tokenizer("BloomTokenizer", proto, bpe), "BloomTokenizer"),
        (keras_hub.tokenizers.LlamaTokenizer(proto, add_eos=True), "`add_eos` .* is True"),
        (keras_hub.tokenizers.LlamaTokenizer(proto, sequence_length=9), "`sequence_length` .* 9"),
        (
            keras_hub.tokenizers.GPT2Tokenizer(bpe.vocabulary, bpe.merges, add_prefix_space=True),
            "`add_prefix_space` .* is True",
        ),
        (
            keras_hub.tokenizers.MistralTekkenTokenizer(
                bpe.vocabulary, bpe.merges, split_pattern=r"\s+"
            ),
            "`split_pattern` of the tokenizer",
        ),
    ]
    for tokenizer, message in refused:
        with pytest.raises(InputError, match=message):
            read_tokenizer(tokenizer)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GemmaTokenizer", "Phi3Tokenizer"])
def test_sentence_piece_ids(name, proto, bpe):
    original = hub_tokenizer(name, proto, bpe)
    tokenizer, ends = read_tokenizer(original)
    assert ends == [tokenizer.eos_id] == [original.end_token_id]
    for text in (*TEXTS[:3], "  two  spaces", "Grüße 🙂", "<s>"):
        ids = [original.start_token_id, *original(text)]
        assert tokenizer.encode_prompt(text) == ids
        assert tokenizer.decode(ids) == original.detokenize(ids)


def test_exports_of_a_converted_task(proto, bpe, randomize, tmp_path):
    task = keras_llm.TextGeneration.from_keras_hub(hub_model("smollm3", proto, bpe, randomize))
    # Each export compares what it wrote with the task.
    assert task.export("saved_model", tmp_path / "smollm3")
    assert task.export("litert", tmp_path / "smollm3.tflite", prefill_lengths=[8])
