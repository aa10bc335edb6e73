"""The files that a device runs: a model, and behind it what `LiteRTModel` needs to know.

Both `.tflite` and `.litertlm` files are read by offsets from their beginning, so a zip archive with
the manifest and the tokenizer can follow, as in TFLite metadata.
"""

import contextlib
import json
import mmap
import pathlib
import tempfile
import zipfile
import zlib

from keras_llm import tokenizers
from keras_llm.errors import ExportError, InputError

_MANIFEST = "keras_llm.json"
_TOKENIZER = "tokenizer"


def append(path, tokenizer, manifest, model=None):
    """Put the manifest and the tokenizer behind a model.

    Args:
        path: the file, which holds nothing else.
        tokenizer: a `tokenizers.Tokenizer`.
        manifest: dict of JSON values.
        model: (begin, end), where in the file the TFLite model is; by default all of it.

    Returns:
        int, the bytes added.
    """
    size = path.stat().st_size
    begin, end = model or (0, size)
    manifest = {**manifest, "model": [begin, end], "size": size, "crc32": _crc32(path, size)}
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
    ):
        tokenizer.save(folder)
        archive.writestr(_MANIFEST, json.dumps(manifest))
        for file in sorted(pathlib.Path(folder).iterdir()):
            archive.write(file, f"{_TOKENIZER}/{file.name}")
    return path.stat().st_size - size


def read(path):
    """The manifest and the tokenizer of a file.

    Raises:
        InputError: if there is none, or the file is not as it was written.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            manifest = json.loads(archive.read(_MANIFEST))
            for name in archive.namelist():
                if name.startswith(f"{_TOKENIZER}/"):
                    archive.extract(name, folder)
            tokenizer = tokenizers.load(pathlib.Path(folder) / _TOKENIZER)
        whole = _crc32(path, manifest["size"]) == manifest["crc32"]
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a model from export.litert or export.litert_lm, or not whole: {error}"
        ) from None
    if not whole:
        raise InputError(f"{path} is damaged: its bytes are not those that were written.")
    return manifest, tokenizer


def parts(path):
    """Bytes of a TFLite model by part: `weights_<type>`, the constant tensors of each type;
    `graph`, the rest; `model`, all of it."""
    from ai_edge_litert import schema_py_generated as schema

    types = {
        value: name.lower() for name, value in vars(schema.TensorType).items() if name[0] != "_"
    }
    found, seen = {}, {0}
    with _mapped(path) as data:
        size, model = len(data), schema.Model.GetRootAs(data, 0)
        for i in range(model.SubgraphsLength()):
            graph = model.Subgraphs(i)
            for j in range(graph.TensorsLength()):
                tensor = graph.Tensors(j)
                if tensor.Buffer() not in seen:
                    seen.add(tensor.Buffer())
                    buffer = model.Buffers(tensor.Buffer())
                    length = max(buffer.DataLength(), buffer.Size())  # inside, or behind the graph
                    if length:
                        name = f"weights_{types[tensor.Type()]}"
                        found[name] = found.get(name, 0) + length
    return {**dict(sorted(found.items())), "graph": size - sum(found.values()), "model": size}


def op_census(path):
    """Op name -> how often it occurs; ExportError if one is not builtin."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    codes, census = [], {}
    with _mapped(path) as data:
        model = schema.Model.GetRootAs(data, 0)
        for i in range(model.OperatorCodesLength()):
            code = model.OperatorCodes(i)
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            codes.append(code.CustomCode().decode() if code.CustomCode() else name)
            if code.CustomCode() or name == "CUSTOM":
                raise ExportError(
                    f"the op {codes[-1]} is not builtin in TFLite; nothing was written."
                )
        for i in range(model.SubgraphsLength()):
            graph = model.Subgraphs(i)
            for j in range(graph.OperatorsLength()):
                name = codes[graph.Operators(j).OpcodeIndex()]
                census[name] = census.get(name, 0) + 1
    return dict(sorted(census.items()))


@contextlib.contextmanager
def _mapped(path):
    """The bytes of a file, which may be larger than memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _crc32(path, size):
    checksum, left = 0, size
    with open(path, "rb") as file:
        while left and (chunk := file.read(min(left, 1 << 22))):
            checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    return checksum if not left else None
