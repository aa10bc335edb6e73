"""The commands of the command line, a module each: `Options`, a dataclass, and `run(options)`.

Nothing heavy is imported before a command runs.
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
