"""Define the flags of the server, without slow imports."""

import dataclasses


def bracketed(host: str) -> str:
    """Return a host as in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


@dataclasses.dataclass
class ServerOptions:
    """The supported flags of `tensorflow_model_server`, and a few additional ones."""

    model_base_path: str = ""
    """Folder of a served model, with a subfolder for each version."""
    model_name: str = ""
    """Name of that model in requests; defaults to the name of the folder."""
    model_config_file: str = ""
    """Text file of a ModelServerConfig with several models, their versions and labels."""
    port: int = 8500
    """gRPC port; 0 selects a free port."""
    rest_api_port: int = 0
    """Port of the REST API and of the web page; 0 disables them."""
    host: str = "127.0.0.1"
    """Address to listen on. By default only this machine can connect; 0.0.0.0 listens on all
    interfaces."""
    reload_base_paths: tuple[str, ...] = ()
    """Folders from which HandleReloadConfigRequest may load models; empty disables the request. A
    SavedModel can read and write files, so allow only folders that you trust."""
    enable_batching: bool = False
    """Batch concurrent requests."""
    batching_parameters_file: str = ""
    """Text file of BatchingParameters."""
    file_system_poll_wait_seconds: float = 1.0
    """Interval to check for new and removed versions; 0 is never."""
    enable_model_warmup: bool = True
    """Run the warm-up requests of a model before it is served; `--no-enable-model-warmup` skips
    them."""
    ssl_config_file: str = ""
    """Text file of an SSLConfig with keys and certificates for gRPC."""
    rest_api_num_threads: int = 64
    """Number of threads for REST requests, and maximum number of concurrent REST requests."""
    rest_api_timeout_in_ms: int = 30000
    """Timeout of a REST request."""
    rest_api_max_body_bytes: int = 64 * 2**20
    """Maximum size of the body of a REST request; larger ones return 413."""
    max_text_bytes: int = 2**20
    """Maximum total size of the strings of a request; tokenizers need several hundred times the
    memory."""
    max_texts: int = 1000
    """Maximum number of strings of a request; each needs the memory of a row of the model."""
    rest_api_enable_cors_support: bool = False
    """Allow requests from pages of other sites (CORS)."""
    tensorflow_intra_op_parallelism: int = 0
    """Number of threads of one op; 0 lets TensorFlow choose."""
    tensorflow_inter_op_parallelism: int = 0
    """Number of ops that run at the same time; 0 lets TensorFlow choose."""
    shutdown_grace_seconds: float = 30.0
    """Maximum time for running requests to finish after SIGTERM."""
