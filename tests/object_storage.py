"""Object storage for tests: in memory, and an S3 server of moto."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import obstore
import pytest

from har_pipeline.core import objects
from har_pipeline.core.records import FeatureSpec, VideoSource
from har_pipeline.features.store import FeatureStore

SPEC = FeatureSpec(extractor="net", weights="random:0", layer="pool", feature_dim=6)


def rows(number: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, 6)).astype(np.float16)


def source(number: int = 5) -> VideoSource:
    return VideoSource(
        clip_starts=np.arange(number), clip_ends=np.arange(number) + 1, num_frames=number, fps=25.0, padded=False
    )


def in_memory() -> str:
    return f"memory://{uuid.uuid4().hex}/store.zarr"


def new_store(address: Any) -> FeatureStore:
    store = FeatureStore(address, create=True)
    store.create_feature_set(SPEC)
    return store


def keys(address: str) -> dict[str, bytes]:
    """Return all that is stored under an address."""
    client = objects._client(address)
    found = [meta["path"] for metas in obstore.list(client) for meta in metas]
    return {key: bytes(obstore.get(client, key).bytes()) for key in found}


@contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server with the bucket `bucket`, and give its address; it answers one request at a time."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log_request(self, *_: Any) -> None:
            pass

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=False, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point this process, and those that it starts, to a server; clients of other tests are forgotten."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    objects._client.cache_clear()
