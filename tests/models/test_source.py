"""What is fetched of a hub model, and in which order: a hub on this machine says what it was asked for."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tests.tiny_llama import save_model

COMMIT = "c0ffee" + 34 * "0"
FIND = """
import json, sys
from jaxprobe.errors import InputError
from jaxprobe.models.files.source import find_model
try:
    source = find_model(sys.argv[1], weights=sys.argv[2] == "weights")
except InputError as error:
    print(json.dumps({"problems": error.problems}))
else:
    print(json.dumps({"name": source.name, "path": str(source.path), "revision": source.revision}))
"""


class Hub(ThreadingHTTPServer):
    """Folders OWNER/NAME by the hub's public API, each a repository with one commit."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Requests)
        self.folder, self.fetched = folder, []


class Requests(BaseHTTPRequestHandler):
    def do_GET(self):
        path = urlsplit(self.path).path
        if match := re.fullmatch(r"/api/models/(\w+/[\w-]+)/(revision|tree)/(\w+)", path):
            name, what, _ = match.groups()
            files = sorted((self.server.folder / name).iterdir())
            siblings = [{"rfilename": file.name} for file in files]
            tree = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name} for file in files
            ]
            self.answer(json.dumps({"id": name, "sha": COMMIT, "siblings": siblings} if what == "revision" else tree))
        elif match := re.fullmatch(rf"/(\w+/[\w-]+)/resolve/{COMMIT}/([\w.-]+)", path):
            if self.command == "GET":
                self.server.fetched.append(match[2])
            self.answer((self.server.folder / match[1] / match[2]).read_bytes(), ETag=f'"{match[2]}"')
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def answer(self, content, **headers):
        content = content.encode() if isinstance(content, str) else content
        self.send_response(200)
        for name, value in {"Content-Length": len(content), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *words):
        """Nothing: the test's output is its own."""


@pytest.fixture
def hub(tmp_path):
    with Hub(tmp_path / "hub") as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def find(hub, name, weights="weights"):
    """What `find_model` says of a hub's model, in a process that takes this hub for the hub."""
    address = f"http://127.0.0.1:{hub.server_port}"
    home = str(hub.folder.parent / "home")
    hub_only = {
        "HF_ENDPOINT": address,
        "HF_HOME": home,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
    }
    command = [sys.executable, "-c", FIND, name, weights]
    done = subprocess.run(command, env=os.environ | hub_only, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_configuration_is_fetched_first_and_then_the_rest(hub):
    folder = hub.folder / "owner/tiny"
    save_model(folder, ["Paris"])
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    small = {file.name for file in folder.glob("*.json")}
    found = find(hub, "owner/tiny", "small files")
    assert hub.fetched[0] == "config.json" and sorted(hub.fetched) == sorted(small)
    assert found["name"] == "owner/tiny" and found["revision"] == COMMIT
    found = find(hub, "owner/tiny")
    assert sorted(hub.fetched) == sorted({*small, "model.safetensors"})
    for name in hub.fetched:
        with open(os.path.join(found["path"], name), "rb") as file:
            assert file.read() == (folder / name).read_bytes()


def test_a_model_that_cannot_be_run_is_refused_by_its_configuration_alone(hub):
    folder = hub.folder / "owner/other"
    save_model(folder, ["Paris"])
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    (problem,) = find(hub, "owner/other")["problems"]
    assert "'mamba'" in problem and hub.fetched == ["config.json"]


def test_a_hub_model_without_a_configuration(hub):
    (hub.folder / "owner/files").mkdir(parents=True)
    (hub.folder / "owner/files/model.gguf").write_bytes(b"GGUF")
    (problem,) = find(hub, "owner/files")["problems"]
    assert problem.startswith("Hub model owner/files has no config.json") and hub.fetched == []
