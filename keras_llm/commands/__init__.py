"""Implement the commands, one module each, with the dataclass `Options` and `run(options)`.

Heavy modules are imported only when a command runs.
"""

from keras_llm.commands import (
    audit,
    chat,
    evaluate,
    explain,
    export,
    generate,
    import_checkpoint,
    inspect,
    predict,
    query,
    recipes,
    serve,
)

COMMANDS = {
    "generate": generate,
    "predict": predict,
    "chat": chat,
    "evaluate": evaluate,
    "explain": explain,
    "audit": audit,
    "export": export,
    "import": import_checkpoint,
    "inspect": inspect,
    "serve": serve,
    "query": query,
    "recipes": recipes,
}
