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


def test_every_dtype_comes_as_it_is(tmp_path):
    save(tmp_path, TENSORS)
    found = open_folder(tmp_path)
    assert set(found) == set(TENSORS) and len(found) == 5
    for name in "abcd":
        assert found.shape(name) == TENSORS[name].shape
        assert found[name].dtype == TENSORS[name].dtype
        np.testing.assert_array_equal(found[name], TENSORS[name])
    with pytest.raises(InputError, match=r"model.safetensors: tensor 'ids' has dtype I64"):
        found["ids"]
    with pytest.raises(KeyError):
        found["e"]


def shards(folder):
    first, second = {"a": TENSORS["a"]}, {"b": TENSORS["b"], "c": TENSORS["c"]}
    save(folder, first, "model-00001-of-00002.safetensors")
    save(folder, second, "model-00002-of-00002.safetensors")
    files = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    files |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return index


def test_shards_are_one_mapping(tmp_path):
    shards(tmp_path)
    found = open_folder(tmp_path)
    assert set(found) == {"a", "b", "c"}
    for name in found:
        np.testing.assert_array_equal(found[name], TENSORS[name])


def test_a_missing_shard_is_named(tmp_path):
    shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        InputError, match=r"00002-of-00002.safetensors is missing, but model.*names it"
    ):
        open_folder(tmp_path)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path):
    shards(tmp_path)
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
def test_a_broken_index_is_named(tmp_path, index, message):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=message) as error:
        open_folder(tmp_path)
    assert "model.safetensors.index.json" in str(error.value)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    path = save(tmp_path, TENSORS)
    whole = path.read_bytes()
    for size in (0, 5, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"model.safetensors.* cannot be read"):
            open_folder(tmp_path)
    path.write_bytes(b"\x00" * 8 + whole[8:])
    with pytest.raises(InputError, match=r"model.safetensors.* cannot be read"):
        open_folder(tmp_path)


def test_a_pickle_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match=r"pytorch_model.bin, a pickle.*convert it"):
        open_folder(tmp_path)


def test_no_weights_and_no_folder(tmp_path):
    with pytest.raises(InputError, match=r"model.safetensors is missing"):
        open_folder(tmp_path)
    with pytest.raises(InputError, match="nothing is not a folder"):
        open_folder(tmp_path / "nothing")


def test_a_damaged_head_is_read_or_refused(tmp_path):
    path = save(tmp_path, TENSORS)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    head = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(0, head, 2):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            found = open_folder(tmp_path)
            assert all(found.shape(name) is not None for name in found)
        except InputError:
            refused += 1
    assert 100 < refused <= 200
