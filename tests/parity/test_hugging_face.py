"""Compare random models of every family with Hugging Face's transformers."""

import pathlib
import runpy

import numpy as np
import pytest
import torch
import transformers

from keras_llm import generation, models
from keras_llm.checkpoints import load_model, to_hugging_face

SHARED = runpy.run_path(str(pathlib.Path(__file__).with_name("random_models.py")))
random_model, ragged_batch, run_torch = (
    SHARED[name] for name in ("random_model", "ragged_batch", "run_torch")
)

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
GPT2 = {"vocab_size": 97, "n_positions": 64, "n_embd": 48, "n_layer": 3, "n_head": 6}
OPT = {
    "vocab_size": 97,
    "hidden_size": 48,
    "ffn_dim": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
DISTILBERT = {
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "n_layers": 3,
    "n_heads": 6,
    "dim": 48,
    "hidden_dim": 80,
}
T5 = {
    "vocab_size": 97,
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 80,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}

DECODERS = {
    "gpt2": ("GPT2LMHeadModel", transformers.GPT2Config(**GPT2)),
    "gpt2, exact gelu, wide": (
        "GPT2LMHeadModel",
        transformers.GPT2Config(**GPT2, n_inner=100, activation_function="gelu"),
    ),
    "llama": ("LlamaForCausalLM", transformers.LlamaConfig(**SIZES)),
    "llama, grouped, tied, biases": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(
            **GROUPED, tie_word_embeddings=True, attention_bias=True, mlp_bias=True
        ),
    ),
    "llama, linear scaling": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(
            **GROUPED, rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 5e4}
        ),
    ),
    "llama, llama3 scaling": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(**{**GROUPED, "head_dim": 16}, rope_parameters=LLAMA3),
    ),
    "llama, yarn scaling": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(**{**GROUPED, "head_dim": 16}, rope_parameters=YARN),
    ),
    "llama, yarn scaling, more options": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(
            **{**GROUPED, "head_dim": 16},
            rope_parameters={**YARN, "mscale": 1.2, "mscale_all_dim": 0.7, "beta_fast": 8.0},
        ),
    ),
    "opt": (
        "OPTForCausalLM",
        transformers.OPTConfig(**OPT, word_embed_proj_dim=48, pad_token_id=1),
    ),
    "opt, norms after the sums, untied": (
        "OPTForCausalLM",
        transformers.OPTConfig(
            **OPT,
            word_embed_proj_dim=48,
            do_layer_norm_before=False,
            activation_function="gelu",
            tie_word_embeddings=False,
            pad_token_id=1,
        ),
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", transformers.GPTNeoXConfig(**SIZES)),
    "gpt_neox, one after the other, without biases": (
        "GPTNeoXForCausalLM",
        transformers.GPTNeoXConfig(
            **SIZES,
            use_parallel_residual=False,
            attention_bias=False,
            rotary_pct=0.5,
            tie_word_embeddings=True,
        ),
    ),
    "mistral, window": (
        "MistralForCausalLM",
        transformers.MistralConfig(**GROUPED, sliding_window=5),
    ),
    "mistral, no window": (
        "MistralForCausalLM",
        transformers.MistralConfig(**GROUPED, sliding_window=None),
    ),
    "mixtral": (
        "MixtralForCausalLM",
        transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    ),
    "qwen2": ("Qwen2ForCausalLM", transformers.Qwen2Config(**GROUPED)),
    "qwen2, windows in some layers": (
        "Qwen2ForCausalLM",
        transformers.Qwen2Config(
            **GROUPED,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=2,
            tie_word_embeddings=True,
        ),
    ),
    "smollm3": ("SmolLM3ForCausalLM", transformers.SmolLM3Config(**GROUPED, pad_token_id=0)),
    "smollm3, biases, layers without positions": (
        "SmolLM3ForCausalLM",
        transformers.SmolLM3Config(
            **GROUPED,
            pad_token_id=0,
            no_rope_layers=[0, 1, 0, 1, 1, 0][: GROUPED["num_hidden_layers"]],
            attention_bias=True,
            mlp_bias=True,
        ),
    ),
    "phi3": ("Phi3ForCausalLM", transformers.Phi3Config(**GROUPED, pad_token_id=0)),
    "phi3, partly rotated, window": (
        "Phi3ForCausalLM",
        transformers.Phi3Config(
            **GROUPED,
            pad_token_id=0,
            sliding_window=5,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 2e4,
                "partial_rotary_factor": 0.5,
            },
        ),
    ),
    "qwen3": ("Qwen3ForCausalLM", transformers.Qwen3Config(**GROUPED, head_dim=16)),
    "qwen3, windows in some layers": (
        "Qwen3ForCausalLM",
        transformers.Qwen3Config(
            **GROUPED,
            head_dim=16,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=2,
            tie_word_embeddings=True,
        ),
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        transformers.Gemma2Config(
            **GROUPED,
            head_dim=16,
            sliding_window=5,
            query_pre_attn_scalar=24,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        transformers.Gemma3TextConfig(
            **GROUPED,
            head_dim=16,
            sliding_window=5,
            query_pre_attn_scalar=24,
            layer_types=["sliding_attention"] * 3 + ["full_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        ),
    ),
}
ENCODERS = {
    "bert": ("BertModel", transformers.BertConfig(**SIZES)),
    "roberta": ("RobertaModel", transformers.RobertaConfig(**SIZES, layer_norm_eps=1e-5)),
    "distilbert": ("DistilBertModel", transformers.DistilBertConfig(**DISTILBERT)),
}
SEQ2SEQ = {
    "t5": transformers.T5Config(**T5),
    "t5 v1.1": transformers.T5Config(
        **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
}
HEADS = {
    "bert, masked language model": ("BertForMaskedLM", ENCODERS["bert"][1]),
    "roberta, masked language model": ("RobertaForMaskedLM", ENCODERS["roberta"][1]),
    "distilbert, masked language model": ("DistilBertForMaskedLM", ENCODERS["distilbert"][1]),
    "bert, classifier": (
        "BertForSequenceClassification",
        transformers.BertConfig(**SIZES, num_labels=3),
    ),
    "roberta, classifier": (
        "RobertaForSequenceClassification",
        transformers.RobertaConfig(**SIZES, layer_norm_eps=1e-5, num_labels=3),
    ),
    "distilbert, classifier": (
        "DistilBertForSequenceClassification",
        transformers.DistilBertConfig(**DISTILBERT, num_labels=3),
    ),
    "bert, token classifier": (
        "BertForTokenClassification",
        transformers.BertConfig(**SIZES, num_labels=5),
    ),
    "roberta, token classifier": (
        "RobertaForTokenClassification",
        transformers.RobertaConfig(**SIZES, layer_norm_eps=1e-5, num_labels=5),
    ),
    "distilbert, token classifier": (
        "DistilBertForTokenClassification",
        transformers.DistilBertConfig(**DISTILBERT, num_labels=5),
    ),
    "bert, next sentence": ("BertForNextSentencePrediction", ENCODERS["bert"][1]),
    "bert, span": ("BertForQuestionAnswering", ENCODERS["bert"][1]),
    "roberta, span": ("RobertaForQuestionAnswering", ENCODERS["roberta"][1]),
    "distilbert, span": ("DistilBertForQuestionAnswering", ENCODERS["distilbert"][1]),
}
FAMILIES = "Families of checkpoints"  # a section of the page


def check_difference(ours, expected, mask):
    """Check the greatest difference; return it and the greatest value."""
    ours, expected = np.asarray(ours)[mask], np.asarray(expected)[mask]
    greatest = float(np.abs(expected).max())
    greatest_difference = float(np.abs(ours - expected).max())
    assert np.std(expected) > 0.05
    assert greatest_difference <= 1e-4 * max(1.0, greatest)
    return greatest_difference, greatest


def record_row(record, name, read, written):
    """Add a row to the page, from two results of `check_difference`."""
    record(FAMILIES, name, f"{read[0]:.1e}", f"{written[0]:.1e}", f"{read[1]:.1f}")


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name, tmp_path, record):
    model_class, config = DECODERS[name]
    their_model = random_model(model_class, config)
    their_model.save_pretrained(tmp_path / "theirs")
    token_ids, mask = ragged_batch()
    expected = run_torch(their_model, input_ids=token_ids, attention_mask=mask.astype(int)).logits
    our_model = load_model(tmp_path / "theirs")
    ours = our_model.predict(token_ids, verbose=0)
    read = check_difference(ours, expected, mask)

    to_hugging_face(our_model, tmp_path / "ours")
    reloaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[problem] for problem in info), info
    reloaded_outputs = run_torch(
        reloaded.eval(), input_ids=token_ids, attention_mask=mask.astype(int)
    ).logits
    record_row(record, name, read, check_difference(ours, reloaded_outputs, mask))


@pytest.mark.parametrize("name", ["gpt2", "mistral, window", "gemma3"])
def test_greedy_text_with_cache_matches_transformers(name, tmp_path, record):
    model_class, config = DECODERS[name]
    their_model = random_model(model_class, config)
    their_model.save_pretrained(tmp_path)
    prompt, _ = ragged_batch(3)
    expected = their_model.generate(
        torch.tensor(prompt[:1]),
        do_sample=False,
        max_new_tokens=30,
        eos_token_id=96,
        pad_token_id=1,
    )[0, prompt.shape[1] :].tolist()
    our_model = load_model(tmp_path)
    state = generation.generate(
        our_model,
        prompt[:1].astype("int32"),
        np.array([prompt.shape[1]], "int32"),
        np.array([30], "int32"),
        generation.Sampling(temperature=0.0),
        stop_id=96,
        pad_id=1,
    )
    tokens = np.asarray(state.token_ids)[0, : int(state.num_tokens[0])].tolist()
    assert tokens == [token for token in expected if token != 96]
    record("Greedy text", name, len(tokens), "yes")


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name, tmp_path, record):
    model_class, config = ENCODERS[name]
    their_model = random_model(model_class, config)
    their_model.save_pretrained(tmp_path / "theirs")
    inputs = encoder_batch(name)
    expected = run_torch(their_model, **inputs).last_hidden_state
    our_model = load_model(tmp_path / "theirs")
    ours = our_model.predict(our_inputs(our_model, inputs), verbose=0)
    mask = inputs["attention_mask"] == 1
    read = check_difference(ours, expected, mask)

    to_hugging_face(our_model, tmp_path / "ours")
    reloaded = transformers.AutoModel.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    )
    assert type(reloaded) is type(their_model)
    reloaded_outputs = run_torch(reloaded.eval(), **inputs).last_hidden_state
    record_row(record, name, read, check_difference(ours, reloaded_outputs, mask))


@pytest.mark.parametrize("name", HEADS)
def test_heads(name, tmp_path, record):
    model_class, config = HEADS[name]
    their_model = random_model(model_class, config)
    their_model.save_pretrained(tmp_path / "theirs")
    inputs = encoder_batch(name)
    mask = inputs["attention_mask"] == 1

    def outputs_of(model):
        outputs = run_torch(model, **inputs)
        if "span" in name:
            return np.stack([outputs.start_logits, outputs.end_logits], -1)
        return np.asarray(outputs.logits)

    our_model = load_model(tmp_path / "theirs")
    rows = our_inputs(our_model, inputs)
    if "masked" in name:
        rows.append(np.tile(np.arange(mask.shape[1]), (len(mask), 1)))
    ours = our_model.predict(rows, verbose=0)
    if "span" in name:
        ours = np.stack([ours["start"], ours["end"]], -1)
    if ours.ndim == 2:
        mask = np.ones(len(ours), bool)
    read = check_difference(ours, outputs_of(their_model), mask)

    to_hugging_face(our_model, tmp_path / "ours")
    reloaded, info = getattr(transformers, model_class).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(info[problem] for problem in info), info
    record_row(record, name, read, check_difference(ours, outputs_of(reloaded.eval()), mask))


def encoder_batch(name):
    token_ids, mask = ragged_batch()
    inputs = {"input_ids": token_ids, "attention_mask": mask.astype(int)}
    if name.startswith(("bert", "roberta")):
        inputs["token_type_ids"] = np.where(mask, token_ids % 2, 0)
    return inputs


def our_inputs(model, inputs):
    rows = [inputs["input_ids"], inputs["attention_mask"] == 1]
    if model.config.num_segments:
        rows.append(inputs["token_type_ids"])
    return rows


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_encoder_decoders(name, tmp_path, record):
    their_model = random_model("T5ForConditionalGeneration", SEQ2SEQ[name], untie="1.1" in name)
    their_model.save_pretrained(tmp_path / "theirs")
    token_ids, mask = ragged_batch()
    token_ids = np.where(mask, token_ids, 0)
    decoder_ids = np.random.default_rng(1).integers(2, 97, (3, 14))
    inputs = {
        "input_ids": token_ids,
        "attention_mask": mask.astype(int),
        "decoder_input_ids": decoder_ids,
    }
    expected = run_torch(their_model, **inputs).logits
    our_model = load_model(tmp_path / "theirs")
    assert isinstance(our_model, models.Seq2Seq)
    ours = our_model.predict([token_ids, decoder_ids], verbose=0)
    full_mask = np.ones(decoder_ids.shape, bool)
    read = check_difference(ours, expected, full_mask)

    to_hugging_face(our_model, tmp_path / "ours")
    reloaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    reloaded_outputs = run_torch(reloaded, **inputs).logits
    record_row(record, name, read, check_difference(ours, reloaded_outputs, full_mask))
