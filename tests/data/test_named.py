"""Test data sets by name, in local folders written by the packages themselves, offline."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before `datasets` is imported

import shutil
import sys

import numpy as np
import pytest

from keras_llm import data
from keras_llm.errors import InputError

ROWS = [
    {
        "text": f"text {i} 中文",
        "label": i % 2,
        "stars": i + 0.5,
        "translation": {"en": f"house {i}", "fr": f"maison {i}"},
        "messages": [
            {"role": "user", "content": f"question {i}"},
            {"role": "assistant", "content": "answer"},
        ],
    }
    for i in range(5)
]
NAMES = ("negative", "positive")
PACKAGES = {"hf": "datasets", "tfds": "tensorflow-datasets"}


@pytest.fixture(scope="module")
def hf(tmp_path_factory):
    """Return the name of a data set, without a split."""
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    folder = tmp_path_factory.mktemp("hf") / "many"
    train, test = (
        datasets.Dataset.from_list(rows).cast_column("label", datasets.ClassLabel(names=NAMES))
        for rows in (ROWS, ROWS[:2])
    )
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(folder)
    train.save_to_disk(folder.with_name("one"))
    train.to_json(folder.with_name("files") / "rows.jsonl")
    return f"hf:{folder}"


@pytest.fixture(scope="module")
def tfds(tmp_path_factory):
    package = pytest.importorskip(
        "tensorflow_datasets", reason="the package tensorflow-datasets is not installed"
    )
    features = package.features
    builder = package.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=features.FeaturesDict(
            {
                "text": features.Text(),
                "label": features.ClassLabel(names=NAMES),
                "stars": features.Scalar(np.float32),
                "translation": features.Translation(("en", "fr")),
                "messages": features.Sequence(
                    {"role": features.Text(), "content": features.Text()}
                ),
            }
        ),
        split_datasets={"train": list(enumerate(ROWS)), "test": list(enumerate(ROWS[:2]))},
        data_dir=tmp_path_factory.mktemp("tfds"),
        file_format="tfrecord",
        disable_shuffling=True,
    )
    return f"tfds:{builder.data_path}"


@pytest.fixture(params=PACKAGES)
def name(request):
    return request.getfixturevalue(request.param)


def test_readers_accept_names(name):
    train = f"{name}:train"
    assert data.read_texts(train) == [row["text"] for row in ROWS]
    assert data.read_texts(f"{name}:test", "translation.fr") == ["maison 0", "maison 1"]
    columns = ["text", "label", "stars", "translation.en"]
    assert data.read_records(train, columns) == [
        (row["text"], NAMES[row["label"]], str(row["stars"]), row["translation"]["en"])
        for row in ROWS
    ]
    assert data.read_conversations(train) == [row["messages"] for row in ROWS]


def test_split_slices(tfds, hf):
    assert data.read_texts(f"{tfds}:train[:2]+train[4:]") == [ROWS[i]["text"] for i in (0, 1, 4)]
    files = hf.removesuffix("many") + "files"
    assert data.read_texts(f"{files}:train[1:3]") == [ROWS[i]["text"] for i in (1, 2)]


def test_split_is_optional_for_single_data_set(hf):
    single = hf.removesuffix("many") + "one"
    assert data.read_texts(single) == [row["text"] for row in ROWS]
    with pytest.raises(InputError, match="has no splits"):
        data.read_texts(f"{single}:train")


def test_missing_splits_columns_and_data_sets_raise_error(name, tmp_path):
    kind = name.split(":")[0]
    with pytest.raises(InputError, match=r"add a split, as in .*:train; it has 'train', 'test'"):
        data.read_texts(name)
    with pytest.raises(InputError, match=r":dev: no split 'dev'; it has 'train', 'test'"):
        data.read_texts(f"{name}:dev")
    with pytest.raises(InputError, match=r":train: no column 'body'; it has .*'text'"):
        data.read_texts(f"{name}:train", "body")
    with pytest.raises(InputError, match=r":train, row 1: no text in column 'messages'"):
        data.read_records(f"{name}:train", ["text", "messages"])
    with pytest.raises(InputError, match=r":train, row 1: no text in column 'translation.de'"):
        data.read_records(f"{name}:train", ["translation.de"])
    with pytest.raises(InputError, match=f"{kind}:{tmp_path}/none:train cannot be loaded"):
        data.read_texts(f"{kind}:{tmp_path}/none:train")
    with pytest.raises(InputError, match="must have the form hf:NAME:SPLIT"):
        data.read_texts(f"{kind}:")


def test_truncated_files_raise_error(tfds, tmp_path):
    folder = shutil.copytree(tfds.removeprefix("tfds:"), tmp_path / "tiny" / "1.0.0")
    (file,) = folder.glob("*train*tfrecord*")
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"tiny/1\.0\.0:train cannot be loaded: .*[Tt]runcated"):
        data.read_texts(f"tfds:{folder}:train")


@pytest.mark.parametrize("kind", PACKAGES)
def test_missing_package_raises_error(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGES[kind].replace("-", "_"), None)
    with pytest.raises(InputError, match=f"needs {PACKAGES[kind]}: pip install {PACKAGES[kind]}"):
        data.read_texts(f"{kind}:name:train")


def test_recipe_accepts_names(tfds, tmp_path, capsys):
    from keras_llm.recipes import text_classification

    options = text_classification.Options(
        out=str(tmp_path / "run"), data=f"{tfds}:train", held_out=0.4
    )
    train, held_out, _ = text_classification.rows(options)[:3]
    assert sorted(train + held_out) == sorted((r["text"], NAMES[r["label"]]) for r in ROWS)
    assert "3 rows for training, 2 held out; dropped: none" in capsys.readouterr().err
