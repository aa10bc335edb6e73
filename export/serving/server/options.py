"""The flags of the server. Nothing heavy is imported here."""

import dataclasses
import os


@dataclasses.dataclass
class ServerOptions:
    """Flags of `tensorflow_model_server`, as far as they do something here, and a few more."""

    model_base_path: str = ""
    """Folder of a served model, with a folder for each version."""
    model_name: str = ""
    """Name of that model in requests; the folder's name if not given."""
    model_config_file: str = ""
    """Several models, their versions and labels: a text file of ModelServerConfig."""
    model_config_file_poll_wait_seconds: float = 0.0
    """Read that file again so often; 0 is never."""
    port: int = 8500
    """Port of gRPC; 0 takes a free one."""
    rest_api_port: int = 0
    """Port of the REST interface and of the page; 0 is off."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all."""
    enable_batching: bool = False
    """Merge requests that come at the same time."""
    batching_parameters_file: str = ""
    """When a batch is complete: a text file of BatchingParameters."""
    file_system_poll_wait_seconds: float = 1.0
    """Look for new and removed versions so often; 0 is never."""
    enable_model_warmup: bool = True
    """Run a model's warm-up requests before it serves."""
    num_request_iterations_for_warmup: int = 1
    """How often to run each of them."""
    allow_version_labels_for_unavailable_models: bool = False
    """Let a label name a version that is not loaded."""
    monitoring_config_file: str = ""
    """Path of the metrics page, or none: a text file of MonitoringConfig."""
    ssl_config_file: str = ""
    """Keys and certificates for gRPC: a text file of SSLConfig."""
    grpc_max_threads: int = max(16, 4 * (os.cpu_count() or 1))
    """Requests over gRPC that are answered at the same time; more wait."""
    grpc_channel_arguments: str = ""
    """Arguments of gRPC, as key=value,key=value; grpc.max_receive_message_length is 64 MiB."""
    rest_api_num_threads: int = 64
    """Connections of the REST interface that may be open at the same time."""
    rest_api_timeout_in_ms: int = 30000
    """How long a REST request may take."""
    rest_api_max_body_bytes: int = 64 * 2**20
    """The longest body of a REST request; longer ones are answered with 413."""
    max_text_bytes: int = 2**20
    """The longest text of a request, all of its strings together; tokenizers need several hundred
    times the memory."""
    rest_api_enable_cors_support: bool = False
    """Let pages of other sites ask."""
    saved_model_tags: str = "serve"
    """Tags of the graph to load, with commas between."""
    tensorflow_intra_op_parallelism: int = 0
    """Threads of one op; 0 lets TensorFlow choose."""
    tensorflow_inter_op_parallelism: int = 0
    """Ops that run at the same time; 0 lets TensorFlow choose."""
    shutdown_grace_seconds: float = 30.0
    """How long requests may take to end after SIGTERM."""
