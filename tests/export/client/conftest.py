"""Clients of real servers over both protocols."""

import socket

import pytest

from keras_llm import export

PROTOCOLS = ("grpc", "rest")


@pytest.fixture(scope="module")
def client_of():
    clients = []

    def make(server, protocol, model="stories", **options):
        rest = f"http://localhost:{server.rest_api_port}"
        target = rest if protocol == "rest" else f"localhost:{server.port}"
        clients.append(export.Client(target, model, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="module", params=PROTOCOLS)
def client(request, text_server, client_of):
    return client_of(text_server, request.param)


@pytest.fixture(scope="module", params=PROTOCOLS)
def tiny(request, tiny_base, serve, client_of):
    # REST sends no deadline: a request continues after the client's timeout, until the server's.
    return client_of(serve(tiny_base, rest_api_timeout_in_ms=2000), request.param, "tiny")


@pytest.fixture
def free_port():
    """Return a port without a server."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
