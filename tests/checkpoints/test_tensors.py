import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from keras_llm.checkpoints.hugging_face.tensors import open_folder
from keras_llm.errors import InputError

TENSORS = {
    "a": np.arange(6, dtype="float32").reshape(2, 3),
    "b": np.linspace(-1, 1, 5).astype("float16"),
    "c": np.linspace(-1, 1, 7).astype(ml_dtypes.bfloat16),
    "d": np.linspace(0, 1, 3),
    "ids": np.arange(4),
}


def save(folder, tensors, name="model.safetensors"):
    safetensors.numpy.save_file(tensors, folder / name)
    return folder / name


def test_dtypes_are_kept(tmp_path):
    save(tmp_path, TENSORS)
    tensors = open_folder(tmp_path)
    assert set(tensors) == set(TENSORS) and len(tensors) == 5
    for name in "abcd":
        assert tensors.shape(name) == TENSORS[name].shape
        assert tensors[name].dtype == TENSORS[name].dtype
        np.testing.assert_array_equal(tensors[name], TENSORS[name])
    with pytest.raises(InputError, match=r"model.safetensors: tensor 'ids' has dtype I64"):
        tensors["ids"]
    with pytest.raises(KeyError):
        tensors["e"]


def write_shards(folder):
    first, second = {"a": TENSORS["a"]}, {"b": TENSORS["b"], "c": TENSORS["c"]}
    save(folder, first, "model-00001-of-00002.safetensors")
    save(folder, second, "model-00002-of-00002.safetensors")
    files = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    files |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def test_shards_are_read_as_one_mapping(tmp_path):
    write_shards(tmp_path)
    tensors = open_folder(tmp_path)
    assert set(tensors) == {"a", "b", "c"}
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], TENSORS[name])


def test_missing_shard_raises_error(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"00002-of-00002.safetensors is missing, but model.*names it"
    ):
        open_folder(tmp_path)


def test_tensor_missing_from_shard_raises_error(tmp_path):
    write_shards(tmp_path)
    save(tmp_path, {"b": TENSORS["b"]}, "model-00002-of-00002.safetensors")
    with pytest.raises(InputError, match=r"00002.safetensors: tensor 'c' is missing"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "index, message",
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "`weight_map` must map"),
        ('{"weight_map": {"a": 3}}', "`weight_map` must map"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "must be a file in the same folder"),
    ],
)
def test_invalid_index_raises_error(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=message) as error:
        open_folder(tmp_path)
    assert "model.safetensors.index.json" in str(error.value)


def test_truncated_file_raises_error(tmp_path):
    path = save(tmp_path, TENSORS)
    content = path.read_bytes()
    for size in (0, 5, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"model.safetensors.* cannot be read"):
            open_folder(tmp_path)
    path.write_bytes(b"\x00" * 8 + content[8:])
    with pytest.raises(InputError, match=r"model.safetensors.* cannot be read"):
        open_folder(tmp_path)


def test_pickle_raises_error_with_advice(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match=r"pytorch_model.bin, a pickle.*convert it"):
        open_folder(tmp_path)


def test_missing_weights_and_folder_raise_error(tmp_path):
    with pytest.raises(InputError, match=r"model.safetensors is missing"):
        open_folder(tmp_path)
    with pytest.raises(InputError, match="nothing is not a folder"):
        open_folder(tmp_path / "nothing")


def test_corrupt_header_is_read_or_raises_error(tmp_path):
    path = save(tmp_path, TENSORS)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    header_size = 8 + int.from_bytes(content[:8], "little")
    errors = 0
    for _ in range(200):
        corrupt = bytearray(content)
        for position in rng.integers(0, header_size, 2):
            corrupt[position] = rng.integers(0, 256)
        path.write_bytes(corrupt)
        try:
            tensors = open_folder(tmp_path)
            assert all(tensors.shape(name) is not None for name in tensors)
        except InputError:
            errors += 1
    assert 100 < errors <= 200
