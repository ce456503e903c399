"""A run's directions, used: a name's state is moved on the way through the model, or written for other tools."""

import json

import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFReader
from safetensors.numpy import load_file

from jaxprobe.cli.main import main
from jaxprobe.errors import InputError
from jaxprobe.extract.continuations import read_continuations
from jaxprobe.models.load import load_model
from jaxprobe.probes.erase import apply_edit
from jaxprobe.results.results import Run
from jaxprobe.runs.steer import export_vector, plan_shift

WIDTH, LAYERS, PROMPT = 64, 3, "the {}"


def test_steer_says_what_pytorch_says(finished, capsys):
    """Greedy words and divergence, as they are and moved, against hooks on transformers in float64."""
    run, to, layer = Run(finished), (35.7, 139.7), 1
    words = ["--to", *map(str, to), "--text", "Paris 0", "Lima 7", "--state", str(layer), "--prompt", PROMPT, "--json"]
    main(["steer", str(run.path), *words])
    [*rows] = json.loads(capsys.readouterr().out)["rows"]
    folder = run.settings.model
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    edit = plan_shift(run, to, str(layer)).edit
    arrays, metadata = run.probes
    at = list(metadata["states"]).index(str(layer))

    def log_shares(ids, own, moved):
        def hook(module, inputs, output):
            whole = output[0] if isinstance(output, tuple) else output
            x = whole.reshape(-1, WIDTH).numpy().copy()
            if moved:
                x[own] = apply_edit(edit, x[own])
                reading = x[own] @ arrays["weights"][at].astype(float) + arrays["intercept"][at]
                np.testing.assert_allclose(reading, to, rtol=1e-4)
            whole = torch.tensor(x).reshape(whole.shape)
            return (whole, *output[1:]) if isinstance(output, tuple) else whole

        handle = model.model.layers[layer].register_forward_hook(hook)
        with torch.no_grad():
            found = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], -1).numpy()
        handle.remove()
        return found

    read = read_continuations(load_model(folder, head=True), [row["text"] for row in rows], PROMPT, [" "], [])
    for row, prefix, [after] in zip(rows, read.prefixes, read.paths, strict=True):
        own = len(prefix) - 1
        first = {}
        for name, moved in (("says", False), ("says_moved", True)):
            ids = [*prefix, *after]
            for _ in range(8):
                shares = log_shares(ids, own, moved)
                first.setdefault(name, shares)
                ids.append(int(shares.argmax()))
            assert row[name] == tokenizer.decode(ids[-8:])
        p, q = first["says"], first["says_moved"]
        assert row["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(), rel=1e-3) and row["kl"] > 1e-3
        assert row["likely_moved"].startswith(repr(tokenizer.decode([int(q.argmax())])))


def test_directions_as_safetensors_move_one_reading_by_one(finished, tmp_path):
    run = Run(finished)
    main(["export", str(run.path), "--vector", str(tmp_path / "v.safetensors"), "--quiet"])
    vectors = load_file(tmp_path / "v.safetensors")
    assert set(vectors) == {f"{i}.{target}" for i in range(LAYERS) for target in ("latitude", "longitude")}
    arrays, metadata = run.probes
    for i in range(LAYERS):
        weights = arrays["weights"][list(metadata["states"]).index(str(i))].astype(float)
        moved = np.stack([vectors[f"{i}.{target}"] for target in run.targets]) @ weights
        np.testing.assert_allclose(moved, np.eye(2), atol=1e-3)


def test_directions_as_a_control_vector(finished, tmp_path):
    """Read back with the gguf package: one tensor a block but the first, one deviation of the first target long."""
    run = Run(finished)
    main(["export", str(run.path), "--vector", str(tmp_path / "v.gguf"), "--quiet"])
    reader = GGUFReader(tmp_path / "v.gguf")
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == run.model
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    assert list(tensors) == [f"direction.{i}" for i in range(1, LAYERS)]
    assert reader.get_field("controlvector.layer_count").contents() == len(tensors)
    spread = run.table.targets[~run.table.is_test, 0].std()
    for i in range(1, LAYERS):
        assert tensors[f"direction.{i}"].shape == (WIDTH,)
        expected = plan_shift(run, (0.0, 0.0), str(i)).edit.write[:, 0] * spread
        np.testing.assert_allclose(tensors[f"direction.{i}"], expected, rtol=1e-5)


def test_what_cannot_be_moved_or_written(finished, tmp_path):
    run = Run(finished)
    with pytest.raises(InputError, match="--to has 1 values; the run's probe reads latitude, longitude"):
        plan_shift(run, (3.0,))
    with pytest.raises(InputError, match="has no probe of 7; it has embed, 0, 1, 2"):
        plan_shift(run, (3.0, 4.0), "7")
    with pytest.raises(InputError, match=r"ends in \.npz; name a \.safetensors or a \.gguf"):
        export_vector(run, tmp_path / "v.npz")
    assert not list(tmp_path.iterdir())
