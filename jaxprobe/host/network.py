"""Whether a server answers, known within seconds: clients of the hub try every file several times without a network."""

import os
import socket
import urllib.parse
import urllib.request

PATIENCE = 3.0  # seconds for a first sign


def is_reachable(endpoint: str) -> bool:
    """Whether the hub answers, or a proxy stands between, which alone can tell; not where HF_HUB_OFFLINE is set."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):  # as huggingface_hub reads it
        return False
    address = urllib.parse.urlsplit(endpoint)
    if urllib.request.getproxies().get(address.scheme):
        return True
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=PATIENCE):
            return True
    except OSError:
        return False
