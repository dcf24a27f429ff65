"""Stores for tests: small prefixes, places of every kind, and an S3 server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from foreword.prefix import Prefix
from foreword.store import Store
from prefix_helpers import small

BUCKET = "prefixes"


def numbered(number: int) -> Prefix:
    """A small prefix that differs from those of other numbers."""
    prefix = small()
    first = next(iter(prefix.slots))
    kv = prefix.slots[first]
    slots = dict(prefix.slots) | {first: kv._replace(key=torch.full_like(kv.key, 0.001 * (number + 1)))}
    return replace(prefix, slots=slots, record={"template": "{input}\n", "number": number})


@contextmanager
def s3() -> Iterator[dict[str, Any]]:
    """Run a real S3 server in this process; yield fsspec's options for it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=BUCKET)
    try:
        yield {"endpoint_url": endpoint, "key": "test", "secret": "test", "skip_instance_cache": True}
    finally:
        server.stop()


def version_files(store: Store, name: str) -> list[Path]:
    """Return the files of the newest version of `name` in a local store."""
    folder = Path(store.url) / "prefixes" / name / "versions"
    return sorted(path for path in folder.rglob("*") if path.is_file())
