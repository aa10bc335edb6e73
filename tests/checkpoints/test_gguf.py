"""Test reading of GGUF files, written by the package gguf."""

import dataclasses
import sys

import gguf
import ml_dtypes
import numpy as np
import pytest

import keras_llm
from keras_llm import models, tokenizers
from keras_llm.checkpoints import from_gguf
from keras_llm.checkpoints.gguf.file import open_gguf
from keras_llm.errors import InputError
from keras_llm.layers import Llama3Scaling, Rotary

Type = gguf.GGMLQuantizationType
CHAT_TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tok():
    return tokenizers.BytePair.train(["once upon a time, there was a fox"] * 5, 270)


@pytest.fixture(scope="module")
def config(tok):
    return models.preset(
        "llama-tiny", vocabulary_size=tok.vocabulary_size, intermediate_dim=128, norm_epsilon=1e-5
    )


def interleave_rows(matrix, heads):
    """Reorder the rows of a query or key matrix (out, in) as llama.cpp does, row by row."""
    size = len(matrix) // heads
    rows = []
    for head in range(heads):
        for i in range(size // 2):
            rows += [head * size + i, head * size + i + size // 2]
    return matrix[rows]


def gguf_tensors(model, permuted=True):
    """Return a model's tensors (out, in) by llama.cpp's names."""
    config, weights = model.config, {v.path: np.asarray(v) for v in model.variables}
    tensors = {
        "token_embd.weight": weights["token_embedding/embeddings"],
        "output_norm.weight": weights["final_norm/scale"],
    }
    if not config.tie_embeddings:
        tensors["output.weight"] = weights["token_embedding/reverse_embeddings"].T
    names = {
        "self_attention/query/kernel": "attn_q",
        "self_attention/key/kernel": "attn_k",
        "self_attention/value/kernel": "attn_v",
        "self_attention/output/kernel": "attn_output",
        "self_attention_norm/scale": "attn_norm",
        "feed_forward_norm/scale": "ffn_norm",
        "feed_forward/gate/kernel": "ffn_gate",
        "feed_forward/up/kernel": "ffn_up",
        "feed_forward/down/kernel": "ffn_down",
    }
    biased = ("query", "key", "value") if config.use_bias else ()
    if config.qk_norm:
        names["self_attention/query_norm/scale"] = "attn_q_norm"
        names["self_attention/key_norm/scale"] = "attn_k_norm"
    heads = {"attn_q": config.num_heads, "attn_k": config.num_key_value_heads}
    for i in range(config.num_layers):
        for path, name in names.items():
            tensor = weights[f"block_{i}/{path}"].T
            if permuted and name in heads:
                tensor = interleave_rows(tensor, heads[name])
            tensors[f"blk.{i}.{name}.weight"] = np.ascontiguousarray(tensor)
        for part in biased:
            bias = weights[f"block_{i}/self_attention/{part}/bias"]
            tensors[f"blk.{i}.attn_{part[0]}.bias"] = bias
    return tensors


def write_gguf(path, config, tensors, tok, kind=Type.F32, architecture="llama", **fields):
    """Write a GGUF file with all matrices in one type and vectors in float32."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.hidden_dim)
    writer.add_feed_forward_length(config.intermediate_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_freq_base(config.position.base)
    writer.add_vocab_size(config.vocabulary_size)
    if config.head_dim * config.num_heads != config.hidden_dim:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(tok.vocabulary))
    special = set(tok.special_tokens)
    writer.add_token_types([3 if token in special else 1 for token in tok.vocabulary])
    writer.add_token_merges(list(tok.merges))
    writer.add_bos_token_id(tok.bos_id)
    writer.add_eos_token_id(tok.eos_id)
    writer.add_add_bos_token(tok.add_bos)
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_eot_token_id(5)
    for name, value in fields.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](name, value)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and kind != Type.F32:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.asarray(tensor, "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(model):
    return {v.path: np.asarray(v) for v in model.variables if "seed_generator" not in v.path}


def assert_same_weights(first, second):
    assert weights(first).keys() == weights(second).keys()
    for path, weight in weights(first).items():
        np.testing.assert_array_equal(weight, weights(second)[path], err_msg=path)


def test_float32_file_is_bit_exact(tmp_path, tok, config, randomize):
    model = randomize(models.causal_lm(config))
    path = write_gguf(tmp_path / "model.gguf", config, gguf_tensors(model), tok)
    task = from_gguf(path)
    assert_same_weights(model, task.model)
    assert task.model.config.position == config.position
    assert task.model.config.max_length == config.max_length
    assert task.metadata["chat_template"] == CHAT_TEMPLATE
    assert task.end_token_ids == (task.tokenizer.eos_id, 5)
    assert task.tokenizer.encode("a fox, once") == tok.encode("a fox, once")
    text = keras_llm.TextGeneration(model, tok)("once", max_new_tokens=8, temperature=0)
    assert task("once", max_new_tokens=8, temperature=0) == text


@pytest.mark.parametrize(
    "tokens, ends",
    [
        (["<|im_end|>", "<|im_start|>"], ["<|im_end|>"]),
        (["<|eot_id|>", "<|eom_id|>", "[PAD]"], ["<|eot_id|>", "<|eom_id|>", "[PAD]"]),
        (["<|end|>", "<|assistant|>"], ["<|end|>"]),
        (["<|end|>", "<|call|>", "<|return|>"], ["<|call|>", "<|return|>"]),
        (["</s>", "<|tool_response>", "<turn|>"], ["<|tool_response>", "<turn|>"]),
    ],
)
def test_every_end_token_ends_a_text(tokens, ends, tmp_path, config, randomize):
    texts = ["once upon a time, there was a fox"] * 5
    tok = tokenizers.BytePair.train(texts, 280, special_tokens=tokens)
    other = dataclasses.replace(config, vocabulary_size=tok.vocabulary_size)
    model = randomize(models.causal_lm(other))
    path = write_gguf(tmp_path / "model.gguf", other, gguf_tensors(model), tok)
    task = from_gguf(path)
    names = {tok.special_tokens[name] for name in ends}
    assert set(task.end_token_ids) == {task.tokenizer.eos_id, 5, *names}
    # Generation ends at each of them: greedy decoding chooses it when its bias is large.
    for name in ends:
        bias = {tok.special_tokens[name]: 1e4}
        details = task(
            "once", max_new_tokens=4, temperature=0, logit_bias=bias, return_details=True
        )
        assert (details.text, details.finish_reason, details.stopped_by) == ("", "stop", name)


def test_untied_embeddings_and_wide_heads(tmp_path, tok, config, randomize):
    other = dataclasses.replace(config, tie_embeddings=False, head_dim=32)
    model = randomize(models.causal_lm(other))
    path = write_gguf(tmp_path / "model.gguf", other, gguf_tensors(model), tok)
    assert_same_weights(model, from_gguf(path).model)


@pytest.mark.parametrize("name, preset", [("qwen2", "qwen2.5-tiny"), ("qwen3", "qwen3-tiny")])
def test_qwen_row_order(name, preset, tmp_path, tok, randomize):
    config = models.preset(preset, vocabulary_size=tok.vocabulary_size)
    model = randomize(models.causal_lm(config))
    tensors = gguf_tensors(model, permuted=False)
    path = write_gguf(tmp_path / "model.gguf", config, tensors, tok, architecture=name)
    assert_same_weights(model, from_gguf(path).model)


@pytest.mark.parametrize("kind, bits", [("F16", 11), ("BF16", 8), ("Q8_0", 7), ("Q4_0", 3)])
def test_quantized_weights_are_close(kind, bits, tmp_path, tok, config, randomize):
    model = randomize(models.causal_lm(config))
    path = write_gguf(tmp_path / "model.gguf", config, gguf_tensors(model), tok, Type[kind])
    loaded = from_gguf(path).model
    for name, weight in weights(model).items():
        error = np.abs(weights(loaded)[name] - weight).max()
        if weight.ndim == 1:
            assert error == 0
        else:  # weights are within -1 .. 1
            assert 0 < error <= 2.0**-bits, name


def test_bfloat16_is_kept(tmp_path, tok, config, randomize):
    model = randomize(models.causal_lm(config))
    path = write_gguf(tmp_path / "model.gguf", config, gguf_tensors(model), tok, Type.BF16)
    loaded = from_gguf(path, dtype="bfloat16").model
    for name, weight in weights(model).items():
        np.testing.assert_array_equal(weights(loaded)[name], weight.astype(ml_dtypes.bfloat16))


def test_q4_1_matches_formula(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 256, (3, 20), dtype="uint8")
    scales = np.array([[0.5, -1], [0.25, 2], [-0.125, 0]], "float16")
    blocks[:, :4] = scales.view("uint8")
    values = read_blocks(tmp_path, blocks, Type.Q4_1, 32)
    for row, block in enumerate(blocks):
        scale, least = scales[row].astype("float32")
        for i in range(16):
            assert values[row, i] == scale * (block[4 + i] % 16) + least
            assert values[row, i + 16] == scale * (block[4 + i] // 16) + least


def test_q6_k_matches_formula(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 256, (2, 210), dtype="uint8")
    blocks[:, 208:] = np.array([[0.5], [-0.25]], "float16").view("uint8")
    values = read_blocks(tmp_path, blocks, Type.Q6_K, 256)
    for row, block in enumerate(blocks):
        low, high = block[:128], block[128:192]
        scales = block[192:208].view("int8")
        for i in range(256):
            half, quarter, index = i // 128, i % 128 // 32, i % 32
            low_bits = low[64 * half + 32 * (quarter % 2) + index] >> (4 * (quarter // 2)) & 15
            high_bits = high[32 * half + index] >> (2 * quarter) & 3
            value = (int(low_bits) | int(high_bits) << 4) - 32
            assert values[row, i] == [0.5, -0.25][row] * scales[i // 16] * value


def read_blocks(tmp_path, blocks, kind, size):
    """Write raw blocks to a file and read them back as float32 (rows, size)."""
    writer = gguf.GGUFWriter(tmp_path / "blocks.gguf", "llama")
    writer.add_tensor("t", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, tensors = open_gguf(tmp_path / "blocks.gguf")
    assert tensors.shape("t") == (len(blocks), size)
    return tensors["t"]


def test_llama3_rope_frequencies(tmp_path, tok, config, randomize):
    scaling = Llama3Scaling(32.0, 1.0, 4.0, 8192)
    other = dataclasses.replace(config, position=Rotary(5e5))
    model = randomize(models.causal_lm(other))
    plain = 5e5 ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    divisors = plain / scaling.frequencies(5e5, config.head_dim)[0]
    assert divisors.max() == pytest.approx(32) and divisors.min() == 1
    tensors = {**gguf_tensors(model), "rope_freqs.weight": divisors}
    path = write_gguf(tmp_path / "model.gguf", other, tensors, tok)
    position = from_gguf(path).model.config.position
    assert position.base == 5e5 and isinstance(position.scaling, Llama3Scaling)
    assert position.scaling.factor == pytest.approx(32)
    tensors["rope_freqs.weight"] = divisors * 1.5
    path = write_gguf(tmp_path / "other.gguf", other, tensors, tok)
    with pytest.raises(InputError, match=r"tensor 'rope_freqs.weight' does not match Llama 3"):
        from_gguf(path)


def test_linear_scaling(tmp_path, tok, config, randomize):
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    model = randomize(models.causal_lm(config))
    path = write_gguf(tmp_path / "model.gguf", config, gguf_tensors(model), tok, **fields)
    assert from_gguf(path).model.config.position == Rotary(config.position.base, 4.0)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"llama.rope.scaling.type": "yarn"}, r"`llama.rope.scaling.type` must be .*'yarn'"),
        ({"llama.expert_count": 8}, r"`llama.expert_count` must be 0; got 8"),
        ({"llama.attention.sliding_window": 64}, r"`llama.attention.sliding_window`"),
        ({"llama.rope.dimension_count": 4}, r"`llama.rope.dimension_count` must be 16"),
        ({"llama.attention.head_count": 0}, r"`llama.attention.head_count` must be at least 1"),
        ({"llama.pooling_type": 3}, r"`llama.pooling_type` must be 0"),
    ],
)
def test_unsupported_fields_raise_error(fields, message, tmp_path, tok, config, randomize):
    tensors = gguf_tensors(models.causal_lm(config))
    path = write_gguf(tmp_path / "model.gguf", config, tensors, tok, **fields)
    with pytest.raises(InputError, match=message) as error:
        from_gguf(path)
    assert "model.gguf" in str(error.value)


def test_unknown_architecture_raises_error(tmp_path, tok, config):
    tensors = gguf_tensors(models.causal_lm(config))
    path = write_gguf(tmp_path / "model.gguf", config, tensors, tok, architecture="mamba")
    with pytest.raises(
        InputError, match=r"`general.architecture` is 'mamba'; it must be one of llama"
    ):
        from_gguf(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("blk.1.ffn_up.weight"), r"tensor 'blk.1.ffn_up.weight' .* is missing"),
        (
            lambda t: t.update({"output_norm.weight": np.ones(32)}),
            r"tensor 'output_norm.weight' has shape \(32,\), expected \(64,\)",
        ),
        (
            lambda t: t.update({"blk.0.attn_q.bias": np.ones(64)}),
            r"tensor 'blk.0.attn_q.bias' of shape \(64,\) is not part of",
        ),
    ],
)
def test_mismatched_tensors_raise_error(change, message, tmp_path, tok, config):
    tensors = gguf_tensors(models.causal_lm(config))
    change(tensors)
    path = write_gguf(tmp_path / "model.gguf", config, tensors, tok)
    with pytest.raises(InputError, match=message):
        from_gguf(path)


def test_unsupported_tensor_type_raises_error(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("integers", np.arange(4, dtype="int32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, tensors = open_gguf(tmp_path / "model.gguf")
    with pytest.raises(
        InputError, match=r"tensor 'integers' has the type I32, which cannot be deq"
    ):
        tensors["integers"]


def test_truncated_file_raises_error(tmp_path, tok, config):
    path = write_gguf(tmp_path / "model.gguf", config, gguf_tensors(models.causal_lm(config)), tok)
    content = path.read_bytes()
    sizes = [0, 3, 10, 30, 200, 5000, len(content) // 2, len(content) - 1]
    for size in sizes:
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"model.gguf"):
            from_gguf(path)
    for offset in (0, 4, 8, 16, 24, 40):  # magic, version, counts, the first key
        path.write_bytes(content[:offset] + b"\xf7" * 8 + content[offset + 8 :])
        with pytest.raises(InputError, match=r"model.gguf"):
            from_gguf(path)
    with pytest.raises(InputError, match=r"nothing.gguf does not exist"):
        from_gguf(tmp_path / "nothing.gguf")


def test_corrupt_header_is_read_or_raises_error(tmp_path):
    """Corrupt bytes give tensors or an InputError, never another error."""
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    writer.add_token_list(["a", "b", "c"])
    writer.add_tensor("t", np.arange(32, dtype="float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content, rng = (tmp_path / "small.gguf").read_bytes(), np.random.default_rng(0)
    errors = 0
    for _ in range(150):
        corrupt = bytearray(content)
        for position in rng.integers(0, len(content) - 128, 2):
            corrupt[position] = rng.integers(0, 256)
        (tmp_path / "small.gguf").write_bytes(corrupt)
        try:
            _, tensors = open_gguf(tmp_path / "small.gguf")
            assert all(isinstance(tensors[name], np.ndarray) for name in tensors)
        except InputError:
            errors += 1
    assert 30 < errors < 150


def test_missing_package_raises_error(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="pip install gguf"):
        from_gguf(tmp_path / "model.gguf")
