"""A server of a small model, and channels to servers."""

import grpc
import pytest
from tensorflow_serving.apis import (
    prediction_service_pb2_grpc,
)


@pytest.fixture(scope="session")
def server(tiny_base, serve):
    return serve(tiny_base)


@pytest.fixture(scope="session")
def channel_to():
    channels = []

    def open_channel(server):
        channels.append(grpc.insecure_channel(f"localhost:{server.port}"))
        return channels[-1]

    yield open_channel
    for channel in channels:
        channel.close()


@pytest.fixture(scope="session")
def stub(server, channel_to):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel_to(server))
