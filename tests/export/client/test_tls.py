"""Test the client and the server with TLS."""

import json
import shutil
import subprocess

import pytest

from keras_llm import export
from keras_llm.errors import ServingError


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca")
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def test_tls(certificates, tiny_base, serve, tmp_path):
    def config(verify):
        texts = {
            "server_key": "server.key",
            "server_cert": "server.pem",
            "custom_ca": "ca.pem",
        }
        lines = [
            f"{name}: {json.dumps((certificates / file).read_text())}"
            for name, file in texts.items()
        ]
        path = tmp_path / f"ssl_{verify}.config"
        path.write_text("\n".join([*lines, f"client_verify: {verify}"]))
        return str(path)

    roots = {"root_certificates": str(certificates / "ca.pem"), "retries": 0}
    own = {
        "client_certificate": str(certificates / "client.pem"),
        "client_key": str(certificates / "client.key"),
    }
    for verify in ("false", "true"):
        server = serve(tiny_base, ssl_config_file=config(verify))
        target = f"localhost:{server.port}"
        for options, is_right in (
            ({**roots, **own}, True),
            (roots, verify == "false"),
            ({"retries": 0}, False),
            ({"tls": True, "retries": 0}, False),
        ):
            with export.Client(target, "tiny", timeout=10, **options) as client:
                if is_right:
                    assert client.predict("once", {"n": 1})["n"] == 2
                else:
                    with pytest.raises(ServingError, match="UNAVAILABLE"):
                        client.predict("once", {"n": 1})
