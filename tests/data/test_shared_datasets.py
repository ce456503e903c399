"""Data sets of a hub that this test runs itself, folders as `datasets` writes them, and data frames."""

import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxprobe.data.catalog import load_table
from jaxprobe.errors import InputError


def frame_of(rows=40, first=0):
    numbers = np.arange(first, first + rows)
    return pd.DataFrame({"name": [f"place {n}" for n in numbers], "year": 1900 + numbers % 17})


class Hub(BaseHTTPRequestHandler):
    """So much of the hub's interface as huggingface_hub asks for to fetch a data set's files."""

    files: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def commit(cls):
        """Another one for other files: the client keeps what it knows of a commit."""
        return hashlib.sha1(" ".join(cls.files).encode()).hexdigest()

    def log_message(self, *_):
        pass

    def do_GET(self):
        headers, status, body = {"X-Repo-Commit": self.commit()}, 200, b""
        if self.path.startswith("/api/datasets/org/rivers"):
            siblings = [{"rfilename": name} for name in self.files]
            tree = [{"type": "file", "path": name, "size": len(self.files[name]), "oid": name} for name in self.files]
            about = {"id": "org/rivers", "sha": self.commit(), "siblings": siblings}
            body = json.dumps(tree if "/tree/" in self.path else about).encode()
            headers["Content-Type"] = "application/json"
        elif "/resolve/" in self.path and (name := self.path.split(f"/resolve/{self.commit()}/")[-1]) in self.files:
            body = self.files[name]
            headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
        else:
            status, headers = 404, {"X-Error-Code": "RepoNotFound"}
        self.send_response(status)
        for header, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET


@pytest.fixture(scope="module")
def server():
    """One for all tests: the client keeps the address that it asked first."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    Hub.files.clear()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"  # made of the former when it was imported
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return Hub.files


def parquet(frame):
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()


def test_a_data_set_of_the_hub_is_a_table(hub):
    hub["data/train-00000-of-00001.parquet"] = parquet(frame_of(40))
    hub["data/test-00000-of-00001.parquet"] = parquet(frame_of(12, first=40))
    hub["README.md"], hub["rivers.py"] = b"# rivers", b"raise SystemExit"
    table = load_table("hf://datasets/org/rivers")
    assert table.name == "rivers" and len(table) == 52 and table.units == ("year",)
    assert table.is_test.tolist() == [False] * 40 + [True] * 12
    assert table.attribution == f"hf://datasets/org/rivers at commit {Hub.commit()[:12]}"
    one = load_table("hf://datasets/org/rivers/data/test-00000-of-00001.parquet")
    assert len(one) == 12 and one.texts[0] == "place 40"


def test_a_data_set_that_is_no_one_table_is_refused(hub):
    hub["data/train.parquet"], hub["more.csv"] = parquet(frame_of()), frame_of().to_csv(index=False).encode()
    with pytest.raises(
        InputError, match="rivers has several tables: more.csv, data/train.parquet. Name the one to read"
    ):
        load_table("hf://datasets/org/rivers")
    with pytest.raises(InputError, match="Data set org/rivers has no lakes.csv"):
        load_table("hf://datasets/org/rivers/lakes.csv")
    with pytest.raises(InputError, match="Data set org/lakes: not found"):
        load_table("hf://datasets/org/lakes")
    with pytest.raises(InputError, match="is no data set of a hub. Write hf://datasets/ORG/NAME"):
        load_table("hf://datasets/rivers")


def test_without_a_network_a_data_set_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="Data set org/rivers: not in the local cache, and the hub can't be reached"):
        load_table("hf://datasets/org/rivers")


def save(frame, folder, files=("data-00000-of-00001.arrow",)):
    """As ``Dataset.save_to_disk`` of datasets 4 writes it: a stream of Arrow for each shard, and their names."""
    folder.mkdir(parents=True)
    for part, name in zip(np.array_split(np.arange(len(frame)), len(files)), files, strict=True):
        table = pa.Table.from_pandas(frame.iloc[part], preserve_index=False)
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": name} for name in files], "_format_type": None, "_split": None}
    (folder / "state.json").write_text(json.dumps(state))


def test_a_folder_that_datasets_saved_is_a_table(tmp_path):
    save(frame_of(40), tmp_path / "rivers", ("a.arrow", "b.arrow"))
    table = load_table(str(tmp_path / "rivers"))
    assert table.name == "rivers" and table.texts == tuple(frame_of(40)["name"]) and table.units == ("year",)
    both = tmp_path / "both"
    for split, rows in {"train": frame_of(30), "validation": frame_of(5, 30), "test": frame_of(9, 35)}.items():
        save(rows, both / split)
    (both / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    table = load_table(str(both))
    assert table.is_test.tolist() == [False] * 35 + [True] * 9
    (both / "dataset_dict.json").write_text(json.dumps({"splits": ["../rivers"]}))
    with pytest.raises(InputError, match="names no splits"):
        load_table(str(both))
    (tmp_path / "rivers" / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../both/x"}]}))
    with pytest.raises(InputError, match="names no files of its folder"):
        load_table(str(tmp_path / "rivers"))
    (both / "test" / "data-00000-of-00001.arrow").write_bytes(b"cut")
    with pytest.raises(InputError, match="can't be read: .* Save the data set anew"):
        load_table(str(both / "test"))


def test_a_data_frame_is_a_table():
    frame = frame_of().rename(columns={"year": " year "})
    frame.attrs["name"] = "rivers"
    table = load_table(frame, limit=20)
    assert table.name == "rivers" and len(table) == 20 and table.units == ("year",)
    assert load_table(frame_of()).name == "table"
    with pytest.raises(InputError, match="The data frame has more than one column 'year'"):
        load_table(frame.assign(year=1))
