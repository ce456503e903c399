"""Probes are shared through a hub that this test runs itself: what is pushed is what load_probes reads."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

import jaxprobe
from jaxprobe.cli.main import main
from jaxprobe.errors import InputError
from jaxprobe.runs.push import card


class Hub(BaseHTTPRequestHandler):
    """So much of the hub's interface as huggingface_hub asks for to make a repository, commit to it and read a file."""

    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *_):
        pass

    def _answer(self, body=b"", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value):
        self._answer(json.dumps(value).encode(), Content_Type="application/json")

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        at = f"http://{self.headers['Host']}/org/probes"
        if self.path.endswith("/repos/create"):
            self._json({"url": at, "id": "org/probes"})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self._json({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json({"commitUrl": f"{at}/commit/{'0' * 40}", "commitOid": "0" * 40, "hookOutput": ""})
        else:
            self._json({})

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        if "/resolve/" in self.path and name in self.files:
            content = self.files[name]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(content, ETag=etag, X_Repo_Commit="0" * 40, Accept_Ranges="bytes")
        elif self.path.startswith("/api/models/"):
            self._json({"id": "org/probes", "sha": "0" * 40, "siblings": []})
        else:
            self._answer(b"{}", 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Hub.files.clear()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("push")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 6)).astype(np.float32)
    frame = pd.DataFrame({"name": [f"n{i}" for i in range(80)], "size|x": x[:, 0] + 0.1 * rng.normal(size=80)})
    frame.to_csv(folder / "t.csv", index=False)
    frame.assign(kind=np.where(x[:, 1] > 0, "up", "down")).to_csv(folder / "k.csv", index=False)
    tables = {
        "numbers": jaxprobe.load_table(str(folder / "t.csv")),
        "labels": jaxprobe.load_table(str(folder / "k.csv"), target=["kind"]),
    }
    return x, {kind: jaxprobe.probe({"0": x, "1": x[:, ::-1]}, table, folder / kind) for kind, table in tables.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["numbers", "labels"])
def test_pushed_probes_predict_as_the_run_does(made, hub, kind, capsys):
    x, runs = made
    run = runs[kind]
    main(["push", str(run.path), "org/probes", "--license", "mit", "--quiet"])
    assert "org/probes" in capsys.readouterr().out
    assert set(hub.files) == {"README.md", "probes.safetensors", "scores.csv", "controls.csv"}
    probes = jaxprobe.load_probes("org/probes")
    rows = run.test_predictions("0")
    found = probes.predict(x[rows["row"]], "0")
    if kind == "labels":
        assert list(found) == list(rows["predicted_kind"])
        chances = probes.probabilities(x[rows["row"]], "0").max(axis=1)
        np.testing.assert_allclose(chances, rows["probability"], atol=1e-6)
    else:
        np.testing.assert_allclose(found[:, 0], rows["predicted_size|x"], atol=1e-6)
    assert repr(jaxprobe.load_probes(run.path)) == repr(probes)


@pytest.mark.slow
def test_a_dry_run_writes_the_same_files_and_a_card_that_says_what_they_are(made, tmp_path, capsys):
    run = made[1]["numbers"]
    main(["push", str(run.path), "org/probes", "--dry-run", str(tmp_path / "shared"), "--quiet"])
    text = (tmp_path / "shared" / "README.md").read_text()
    assert text == card(run, "org/probes", "unknown")
    for words in (
        "license: unknown",
        "size\\|x",
        "Beside its controls",
        "permuted",
        "ngrams",
        "test rows",
        "load_probes",
    ):
        assert words in text
    with pytest.raises(SystemExit, match="2"):
        main(["push", str(run.path), "org/probes", "--dry-run", str(tmp_path / "shared")])
    assert "is not empty" in capsys.readouterr().err


def test_names_and_licences_that_are_none(made, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["push", str(made[1]["numbers"].path), "no name", "--license", "MIT!", "--dry-run", str(tmp_path / "x")])
    said = capsys.readouterr().err
    assert "Write ORG/NAME" in said and "not spelled as a hub does" in said and not (tmp_path / "x").exists()


def test_probes_that_are_not_there(hub, made, tmp_path):
    with pytest.raises(InputError, match="can't be fetched from the hub"):
        jaxprobe.load_probes("org/other")
    with pytest.raises(InputError, match="Name a run's folder"):
        jaxprobe.load_probes("./nothing")
    (tmp_path / "probes.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="cannot be read as probes"):
        jaxprobe.load_probes(tmp_path / "probes.safetensors")
    probes = jaxprobe.load_probes(made[1]["numbers"].path)
    with pytest.raises(InputError, match=r"wanted \[row, 6\]"):
        probes.predict(np.zeros((2, 5)))
    with pytest.raises(InputError, match="no probe of state '7'"):
        probes.predict(np.zeros((2, 6)), "7")
    with pytest.raises(InputError, match="no classes"):
        probes.probabilities(np.zeros((2, 6)))
