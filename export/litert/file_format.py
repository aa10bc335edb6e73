"""Read and write exported files: a model, followed by an archive with the rest for `LiteRTModel`.

Both `.tflite` and `.litertlm` files are read by offsets from their beginning, so a zip archive with
the manifest and the tokenizer can be appended, as in TFLite metadata.
"""

import contextlib
import json
import lzma
import mmap
import pathlib
import tempfile
import zipfile
import zlib

from keras_llm import tokenizers
from keras_llm.errors import ExportError, InputError
from keras_llm.export.litert.runtime.manifest import check_manifest
from keras_llm.export.litert.runtime.operators import OPERATORS
from keras_llm.json_files import parse_json
from keras_llm.types import JSON, PathLike

_MANIFEST = "keras_llm.json"
_TOKENIZER = "tokenizer"
_LARGEST = 1 << 29  # bytes of the unpacked archive
_CORRUPT = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)  # of an archive


def append(
    path: pathlib.Path,
    tokenizer: tokenizers.Tokenizer,
    manifest: JSON,
    model: tuple[int, int] | None = None,
) -> int:
    """Append the manifest and the tokenizer to a file.

    Args:
        path: path of the file, without an archive.
        tokenizer: a `tokenizers.Tokenizer`.
        manifest: dict of JSON values.
        model: (begin, end), the position of the TFLite model in the file. Defaults to the whole
            file.

    Returns:
        int, the number of bytes added.
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


def read(path: PathLike) -> tuple[JSON, tokenizers.Tokenizer]:
    """Return the manifest and the tokenizer of a file.

    Raises:
        InputError: if the file is missing, was not exported by this package, or is damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            if sum(file.file_size for file in archive.infolist()) > _LARGEST:
                raise ValueError(f"its archive has more than {_LARGEST >> 20} MB")
            manifest = parse_json(archive.read(_MANIFEST), f"{path}: {_MANIFEST}")
            for name in archive.namelist():
                if name.startswith(f"{_TOKENIZER}/"):
                    archive.extract(name, folder)
            tokenizer = tokenizers.load(pathlib.Path(folder) / _TOKENIZER)
    except (*_CORRUPT, ValueError, KeyError, RuntimeError, OSError) as error:
        raise InputError(
            f"{path} is not a model from export.litert or export.litert_lm, or is incomplete: "
            f"{error}"
        ) from None
    if not isinstance(manifest, dict):
        raise InputError(f"{path}: {_MANIFEST} must hold a JSON object.")
    check_manifest(path, manifest)
    if _crc32(path, manifest["size"]) != manifest["crc32"]:
        raise InputError(f"{path} is damaged: its checksum does not match.")
    return manifest, tokenizer


def parts(path: PathLike) -> dict[str, int]:
    """Return the bytes of the parts of a TFLite model.

    Returns:
        A dict of `weights_<type>`, the constant tensors of each type; `graph`, the rest; and
        `model`, the total.
    """
    from ai_edge_litert import schema_py_generated as schema

    types = {
        value: name.lower() for name, value in vars(schema.TensorType).items() if name[0] != "_"
    }
    sizes: dict[str, int] = {}
    seen = {0}
    with _mapped(path) as data:
        size, model = len(data), schema.Model.GetRootAs(data, 0)
        for i in range(model.SubgraphsLength()):
            graph = model.Subgraphs(i)
            for j in range(graph.TensorsLength()):
                tensor = graph.Tensors(j)
                if tensor.Buffer() not in seen:
                    seen.add(tensor.Buffer())
                    buffer = model.Buffers(tensor.Buffer())
                    length = max(buffer.DataLength(), buffer.Size())  # inside or after the graph
                    if length:
                        name = f"weights_{types[tensor.Type()]}"
                        sizes[name] = sizes.get(name, 0) + length
    return {**dict(sorted(sizes.items())), "graph": size - sum(sizes.values()), "model": size}


def op_census(path: PathLike) -> dict[str, int]:
    """Count the ops of a TFLite model by name.

    Raises:
        ExportError: if `LiteRTModel` does not run one of them: a custom op, or a loop.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}
    codes: list[str] = []
    census: dict[str, int] = {}
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
            if name not in OPERATORS:
                hint = ": unroll the loops of its layers" if name == "WHILE" else ""
                raise ExportError(
                    f"the model has the op {name}, which is not supported on devices{hint}; "
                    "nothing was written."
                )
        for i in range(model.SubgraphsLength()):
            graph = model.Subgraphs(i)
            for j in range(graph.OperatorsLength()):
                name = codes[graph.Operators(j).OpcodeIndex()]
                census[name] = census.get(name, 0) + 1
    return dict(sorted(census.items()))


@contextlib.contextmanager
def _mapped(path):
    """Map a file, which may be larger than memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _crc32(path, size):
    checksum, left = 0, size
    with open(path, "rb") as file:
        while left and (chunk := file.read(min(left, 1 << 22))):
            checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
    return checksum if not left else None
