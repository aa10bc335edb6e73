"""Write bundles for LiteRT-LM, the language model runtime for Android, iOS and desktops."""

import contextlib
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import litert_lm_builder as builder

from keras_llm.errors import ExportError, InputError
from keras_llm.export import children, verification
from keras_llm.export.litert import conversion, file_format
from keras_llm.export.planning import check_room
from keras_llm.export.progress import Progress
from keras_llm.export.report import disk_errors, read_reports, write_report
from keras_llm.files import atomic_file
from keras_llm.tasks import TextGeneration
from keras_llm.tokenizers import SentencePiece, to_hugging_face
from keras_llm.types import JSON, PathLike

_LITERT_LM = "keras_llm.export.litert.litert_lm_worker"
# LiteRT-LM's command line passes the content of a message as parts; most templates expect a string.
_TEXTS = """{%- set texts = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{%- set texts.messages = texts.messages + [message] -%}
{%- else -%}
{%- set content = message.content | map(attribute="text") | join -%}
{%- set texts.messages = texts.messages + [{"role": message.role, "content": content}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = texts.messages %}"""
# Without a chat template, the messages are the prompt.
_PLAIN_TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)


def write_litert_lm(
    task: TextGeneration,
    path: PathLike,
    overwrite: bool,
    held_out: Sequence[str] | None,
    max_quality_loss: float | None,
    **options: Any,
) -> JSON:
    """Export a task; see `litert_lm` for the arguments, and `conversion.plan` for `options`."""
    path = pathlib.Path(path)
    if path.suffix != ".litertlm":
        raise InputError(f"litert_lm: `path` must end in .litertlm, got {path}.")
    if not isinstance(task, TextGeneration):
        raise InputError(f"litert_lm: `task` must be a TextGeneration, got {type(task)}.")
    plan = conversion.plan("litert_lm", task, **options)
    read_reports(path.parent)  # fail now if it is damaged
    checks = plan.checks("litert_lm", held_out, max_quality_loss)
    check_room("litert_lm", task, "litert_lm", plan.quantization, plan.manifest["max_length"])
    with (
        disk_errors(path),
        atomic_file(path, overwrite) as partial,
        conversion.processes() as (lowering, running),
        Progress(path.name, task.model.count_params()) as progress,
    ):
        with _folder_beside(partial) as folder:
            model = folder / "model.tflite"
            request = conversion.build(plan, model, lowering, progress, checks.request)
            ops = file_format.op_census(model)
            parts = file_format.parts(model)
            with progress.phase("write"):
                section = _bundle(plan, model, partial, folder)
        parts["bundle"] = partial.stat().st_size - parts["model"]
        tokenizer, manifest = plan.task.tokenizer, plan.manifest
        parts["tokenizer"] = file_format.append(partial, tokenizer, manifest, section)
        with progress.phase("verify"):
            verified = checks.of(partial, request, running)
            running.close()
            litert_lm = _run_litert_lm(partial, checks.prompts, checks.texts, plan.task.tokenizer)
        report = {
            "format": "litert_lm",
            "quantization": plan.weights,
            **manifest,
            "bytes": {**parts, "total": partial.stat().st_size},
            "ops": ops,
            **verified,
            "litert_lm": litert_lm,
            "seconds": progress.seconds,
        }
        write_report(path.parent, path.name, report)
    return report


@contextlib.contextmanager
def _folder_beside(path):
    """Create a temporary folder on the same disk, because the default one may be in memory."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        yield pathlib.Path(folder)


def _bundle(plan, model, path, folder):
    """Write the bundle and return the position of the model in it, (begin, end)."""
    bundle = builder.LitertLmFileBuilder()
    author = builder.Metadata(key="Authors", value="keras_llm", dtype=builder.DType.STRING)
    bundle.add_system_metadata(author)
    (folder / "metadata.pb").write_bytes(_metadata(plan).SerializeToString())
    bundle.add_llm_metadata(str(folder / "metadata.pb"))
    tokenizer = plan.task.tokenizer
    if isinstance(tokenizer, SentencePiece) and tokenizer.prefix is None:
        (folder / "sentencepiece.model").write_bytes(tokenizer.model)
        bundle.add_sentencepiece_tokenizer(str(folder / "sentencepiece.model"))
    else:
        to_hugging_face(tokenizer, folder / "hugging_face")
        bundle.add_hf_tokenizer(str(folder / "hugging_face" / "tokenizer.json"))
    bundle.add_tflite_model(str(model), builder.TfLiteModelType.PREFILL_DECODE)
    with open(path, "wb") as file:
        bundle.build(file)
    return _model_section(path)


def _metadata(plan):
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    tokenizer = plan.task.tokenizer
    metadata = llm_metadata_pb2.LlmMetadata()
    if tokenizer.add_bos:
        metadata.start_token.token_ids.ids.append(tokenizer.bos_id)
    for index in plan.manifest["end_token_ids"]:
        metadata.stop_tokens.add().token_ids.ids.append(index)
    metadata.max_num_tokens = plan.manifest["max_length"]
    metadata.llm_model_type.generic_model.SetInParent()
    template = plan.manifest.get("chat_template")
    metadata.jinja_prompt_template = _TEXTS + template if template else _PLAIN_TEMPLATE
    metadata.supports_thinking = metadata.supports_function_calling = False
    spare = range(tokenizer.vocabulary_size, plan.task.model.config.vocabulary_size)
    metadata.suppress_tokens.ids.extend(spare)
    return metadata


def _model_section(path):
    import io

    from litert_lm_builder import litertlm_header_schema_py_generated as schema
    from litert_lm_builder import litertlm_peek

    header = litertlm_peek.read_litertlm_header(str(path), io.StringIO())
    sections = header.SectionMetadata()
    for i in range(sections.ObjectsLength()):
        section = sections.Objects(i)
        if section.DataType() == schema.AnySectionDataType.TFLiteModel:
            return section.BeginOffset(), section.EndOffset()
    raise ExportError("the bundle has no TFLite model section.")


def _run_litert_lm(path, prompts, texts, tokenizer):
    """Compare the greedy texts of LiteRT-LM with those of `LiteRTModel`.

    Returns:
        A dict for the report, or None if LiteRT-LM is not installed.
    """
    try:
        import litert_lm  # noqa: F401, check that it is installed
    except ImportError:
        return None
    with (
        _folder_beside(path) as cache,
        children.child(_LITERT_LM, "that runs the bundle in LiteRT-LM") as child,
    ):
        answer = child.ask({"path": str(path), "prompts": prompts, "cache": str(cache)})

    def plain(text):
        # LiteRT-LM returns a C string, which ends at the first NUL, and includes special tokens,
        # which `decode` omits. It decodes new tokens as a text of their own, without the space that
        # such a tokenizer removes from the beginning of a text.
        for token in tokenizer.special_tokens:
            text = text.replace(token, "")
        text = text.partition("\0")[0]
        return text.removeprefix(" ") if getattr(tokenizer, "strips_space", False) else text

    verification.require_same_texts(map(plain, answer["texts"]), map(plain, texts))
    return {"prompts": len(prompts), "greedy_texts_equal": True}
