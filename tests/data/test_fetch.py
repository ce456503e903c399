"""Fetching from a server on the loopback interface; nothing here reaches further."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from jaxprobe.data import fetch as fetch_module
from jaxprobe.data.catalog import DATA_SETS
from jaxprobe.data.fetch import GIT_BLOB, SHA256, fetch
from jaxprobe.errors import InputError

DATA = os.environ.get("JAXPROBE_DATA")
TABLE = b"name,latitude\nOslo,59.9\n" * 1000


class Server:
    """Serves `content` for every path, declaring `length` bytes (its own length where None)."""

    def __init__(self):
        self.content, self.length, self.status, self.requests = TABLE, None, 200, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append(self.path)
                self.send_response(server.status)
                self.send_header("Content-Length", str(server.length or len(server.content)))
                self.end_headers()
                self.wfile.write(server.content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/data"


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("JAXPROBE_DATA", raising=False)
    server = Server()
    monkeypatch.setattr(fetch_module, "SOURCE", server.url)
    monkeypatch.setitem(SHA256, "art", hashlib.sha256(TABLE).hexdigest())
    thread = Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


def test_a_table_arrives_whole_and_is_not_fetched_twice(server, tmp_path):
    path = fetch("art", tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "art.csv" and path.read_bytes() == TABLE
    assert os.listdir(path.parent) == ["art.csv"]
    assert fetch("art", path.parent) == path
    assert server.requests == ["/data/art.csv"]


def test_the_folder_of_the_environment(server, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="No folder is named"):
        fetch("art")
    monkeypatch.setenv("JAXPROBE_DATA", str(tmp_path))
    assert fetch("art") == tmp_path / "art.csv"


@pytest.mark.parametrize("change", [TABLE[:-1], TABLE + b"\n", TABLE.replace(b"59.9", b"59.8", 1), b""])
def test_other_content_is_refused_and_nothing_is_kept(server, tmp_path, change):
    server.content = change
    with pytest.raises(InputError, match="not the pinned table"):
        fetch("art", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_connection_cut_short(server, tmp_path):
    server.content, server.length = TABLE[:-10], len(TABLE)
    with pytest.raises(InputError, match="not the pinned table"):
        fetch("art", tmp_path)
    assert os.listdir(tmp_path) == []


def test_no_network_and_no_file(server, tmp_path, monkeypatch):
    server.status = 404
    with pytest.raises(InputError, match="HTTP Error 404"):
        fetch("art", tmp_path)
    monkeypatch.setattr(fetch_module, "SOURCE", "http://127.0.0.1:1/closed")
    with pytest.raises(InputError, match="Connection refused"):
        fetch("art", tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_of_the_users_own_is_not_overwritten(server, tmp_path):
    (tmp_path / "art.csv").write_text("mine")
    with pytest.raises(InputError, match="exists and is not the paper's table"):
        fetch("art", tmp_path)
    assert (tmp_path / "art.csv").read_text() == "mine" and server.requests == []


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="could not be written"):
        fetch("art", tmp_path / "file" / "folder")


def test_names(tmp_path):
    for name in ("cities", "arts"):
        with pytest.raises(InputError, match=r"the ones there are: world_place, us_place.*cities comes with"):
            fetch(name, tmp_path)
    assert set(SHA256) | set(GIT_BLOB) == set(DATA_SETS) - {"cities"}


def test_git_blob_ids_are_gits_own(server, tmp_path, monkeypatch):
    """git itself names the content that the two tables pinned by blob id are checked against."""
    (tmp_path / "content").write_bytes(TABLE)
    command = ["git", "hash-object", "--no-filters", str(tmp_path / "content")]
    blob = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    monkeypatch.setitem(GIT_BLOB, "headline", blob)
    assert fetch("headline", tmp_path).read_bytes() == TABLE
    server.content = TABLE + b"\n"
    monkeypatch.setitem(GIT_BLOB, "historical_figure", blob)
    with pytest.raises(InputError, match="not the pinned table"):
        fetch("historical_figure", tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("name", ["world_place", "us_place", "art"])
def test_the_tables_at_hand_are_the_pinned_ones(name):
    assert fetch(name, DATA) == Path(DATA) / f"{name}.csv"
