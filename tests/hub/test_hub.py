"""Download models by name with the real `huggingface_hub` from a server on loopback."""

import pathlib
import socket
import time

import hub_server
import numpy as np
import pytest
import safetensors.numpy

import keras_llm
from keras_llm import hub
from keras_llm.errors import InputError


@pytest.fixture
def fetch(run):
    """Function that runs `hub.fetch` in a process and returns the path or raises InputError."""

    def fetch(name, environment=(), **options):
        code = (
            "import sys\nfrom keras_llm import hub\nfrom keras_llm.errors import InputError\n"
            f"try: print(hub.fetch({name!r}, **{options!r}))\n"
            "except InputError as error: print(error); sys.exit(2)\n"
            "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
        )
        done = run("-c", code, environment=environment)
        if done.returncode == 2:
            raise InputError(done.stdout.strip())
        assert done.returncode == 0, done.stderr
        return pathlib.Path(done.stdout.strip())

    return fetch


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


NEEDED = ["config.json", "model.safetensors", "tokenizer.json"]


def test_only_needed_files_are_downloaded_once(server, fetch):
    folder = fetch("hf:me/tiny")
    assert files(folder) == NEEDED
    loaded = safetensors.numpy.load_file(folder / "model.safetensors")["w"]
    np.testing.assert_array_equal(loaded, np.arange(200_000))
    server.requests.clear()
    assert fetch("hf:me/tiny@v1") == fetch("hf:me/tiny", revision=hub_server.COMMIT) == folder
    assert not [path for method, path in server.requests if "storage" in path]
    assert fetch("hf:me/tiny", environment={"HF_HUB_OFFLINE": "1"}) == folder


def test_one_gguf_file(server, fetch):
    path = fetch("hf:me/tiny/quantized/tiny-q8.gguf")
    assert path.read_bytes() == b"GGUF" * 50_000
    assert not [path for method, path in server.requests if "safetensors" in path]


def test_interrupted_download_is_resumed(server, fetch):
    server.rules["me/tiny", "model.safetensors"] = "cut"
    assert files(fetch("hf:me/tiny")) == NEEDED
    gets = [path for method, path in server.requests if "storage" in path and method == "GET"]
    assert len(gets) == 2


def test_part_of_a_download_is_named(server, fetch, tmp_path):
    folder = fetch("hf:me/tiny")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"only a part of it is in the cache .*HF_HUB_OFFLINE"):
        fetch("hf:me/tiny", environment={"HF_HUB_OFFLINE": "1"})
    assert files(fetch("hf:me/tiny")) == NEEDED


def test_damaged_download_is_deleted(server, fetch):
    server.rules["me/tiny", "model.safetensors"] = "damaged"
    with pytest.raises(InputError, match=r"model\.safetensors is damaged.*SHA-256"):
        fetch("hf:me/tiny")
    server.rules.clear()
    assert files(fetch("hf:me/tiny")) == NEEDED


def test_gated_models_need_a_token(server, fetch):
    server.rules["me/tiny"] = "gated"
    with pytest.raises(InputError, match=r"hf:me/tiny is gated: accept its terms at http"):
        fetch("hf:me/tiny")
    assert files(fetch("hf:me/tiny", token="right")) == NEEDED
    server.rules["me/tiny"] = "gated"
    assert files(fetch("hf:me/tiny", environment={"HF_TOKEN": "right"})) == NEEDED


@pytest.mark.parametrize(
    "name, message",
    [
        ("hf:me/nothing", "there is no such model at http.*/me/nothing, or it is private"),
        ("hf:me/tiny@v9", "there is no revision 'v9'"),
        ("hf:me/tiny/other.gguf", "there is no file 'other.gguf'"),
    ],
)
def test_unknown_names(name, message, fetch):
    with pytest.raises(InputError, match=message):
        fetch(name)


def test_hub_that_cannot_be_reached(fetch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}", "http://hub.invalid"):
        begin = time.monotonic()
        with pytest.raises(InputError, match=rf"not in the cache .*{url} cannot be reached"):
            fetch("hf:me/tiny", environment={"HF_ENDPOINT": url})
        print(f"{url}: {time.monotonic() - begin:.1f} s")


@pytest.mark.parametrize(
    "name, message",
    [
        ("hf:", "not a model name"),
        ("hf:a/b/c", "not a model name"),
        ("hf:a b/c", "not a model name"),
        ("hf:../../etc", "not a model name"),
        ("kaggle:keras/llama", "kaggle:OWNER/MODEL/keras/VARIATION"),
        ("kaggle:a/b/pytorch/c", "kaggle:OWNER/MODEL/keras/VARIATION"),
        ("kaggle:a/../keras/c", "kaggle:OWNER/MODEL/keras/VARIATION"),
    ],
)
def test_malformed_names(name, message):
    with pytest.raises(InputError, match=message):
        hub.fetch(name)
    assert hub.is_name(name) and not hub.is_name(keras_llm.__file__)


@pytest.mark.parametrize("version", ["", "/1"])
def test_kaggle(version, fetch, tmp_path):
    """A version in the cache needs no network; without a version, Kaggle is asked for the last."""
    name, environment = f"kaggle:me/tiny/keras/tiny_en{version}", {"KAGGLEHUB_CACHE": str(tmp_path)}
    models = tmp_path / "models" / "me" / "tiny" / "keras" / "tiny_en"
    (models / "1").mkdir(parents=True)
    (models / "1.complete").touch()
    environment |= {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    if version:
        assert fetch(name, environment=environment) == models / "1"
    else:
        with pytest.raises(InputError, match=f"{name} cannot be downloaded: .*"):
            fetch(name, environment=environment)


def test_repositories_that_cannot_be_read(server, fetch):
    (server.root / "me" / "tiny" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="hf:me/tiny has no safetensors; pickled weights"):
        fetch("hf:me/tiny")
    (server.root / "me" / "gguf").mkdir()
    (server.root / "me" / "gguf" / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"hf:me/gguf has no config\.json; name one of its GGUF"):
        fetch("hf:me/gguf")
    with pytest.raises(InputError, match=r"hf:a/b/x\.gguf is not the name of a repository"):
        hub.folder_of("hf:a/b/x.gguf")
    with pytest.raises(InputError, match="hf:a/b names no GGUF file"):
        hub.file_of("hf:a/b")


def test_parts_of_a_name():
    parse = hub.parse
    assert parse("hf:gpt2") == ("hf", "gpt2", None, None)
    assert parse("hf:a/b@v1.0") == ("hf", "a/b", "v1.0", None)
    assert parse("hf:a/b@v1/x/y-Q4_K.gguf") == ("hf", "a/b", "v1", "x/y-Q4_K.gguf")
    assert parse("hf:a/b", "v1").revision == "v1"
    with pytest.raises(InputError, match="`revision`"):
        parse("hf:a/b@v1", "v2")
