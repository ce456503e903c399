"""Plans for machines that are not here: counted from shapes, and compiled where what compiles can be installed."""

import functools
import json
from collections import Counter

import jax
import numpy as np
import pytest

from jaxprobe.cli.main import main
from jaxprobe.cost.chips import parse_topology
from jaxprobe.cost.counts import Step, count_fit, count_ridge, count_step, count_sums
from jaxprobe.cost.memory import device_fit_memory
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.mesh import make_mesh, mesh_text
from jaxprobe.models.published import find_published
from jaxprobe.plan import planning, topologies, words
from jaxprobe.plan.hlo import KINDS
from jaxprobe.plan.planning import COLUMN_SECONDS, READINGS
from jaxprobe.plan.programs import forward_program
from jaxprobe.probes.devices import layer_mesh
from jaxprobe.probes.solve import TOGETHER, sums_programs
from jaxprobe.runs.fit import FOLDS, fit_probes
from jaxprobe.settings import RunSettings


def plan(model, topology, dataset, prompt="empty", **settings):
    return planning.plan(RunSettings(model, dataset, prompt=prompt, **settings), topology)


ROWS = 3000  # of the cities: enough for several steps, and for probes in float32 on none of these widths


@pytest.fixture(scope="module", autouse=True)
def without_plugin():
    """GPUs are counted, also where the plugin is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topologies, "_found", lambda module: False)
        yield


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer():
    """Of the demo model, read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "load_tokenizer", functools.cache(planning.load_tokenizer))
        yield


@pytest.fixture(scope="module")
def gpus():
    return plan("llama-2-7b", "h100:8", "cities", "Where is {}", limit=ROWS)


def test_gpus_are_counted_and_said_to_be(gpus):
    lines = "\n".join(words.describe(gpus) + words.conclusions(gpus))
    assert "Counted from shapes alone" in lines and "8 x NVIDIA H100 SXM, 80 GB each, of which JAX takes 60" in lines
    assert "Mesh data=8: parameters take 13.21 GB, which leaves at least half of each device's 60 GB free" in lines
    assert "Tokens were counted with the tokenizer of the demo model" in lines
    assert "3,000 entities" in lines and "not measured on this machine" in lines
    assert gpus.fits(True) and gpus.fits(False) and not gpus.compiled
    # Two bytes each of all parameters but the output head.
    assert gpus.parameters == 2 * (6_738_415_616 - 32_000 * 4096)


def test_times_follow_from_operations_and_bytes(gpus):
    step = count_step(gpus.config, gpus.step, gpus.mesh, "bfloat16", "gpu")
    assert gpus.steps >= 1 and gpus.steps.is_integer()
    products_s = step.operations / (0.5 * 989e12)
    assert gpus.stored["forward"] >= gpus.steps * products_s
    assert gpus.stored["forward"] == pytest.approx(gpus.steps * max(products_s, step.traffic / 3350e9))
    assert gpus.stored["writing"] == pytest.approx(ROWS * 33 * 4096 * 2 / 1e9)
    assert gpus.stored["reading"] == 2 * gpus.stored["writing"]
    assert gpus.stored["total"] == pytest.approx(
        max(gpus.stored["forward"], gpus.stored["writing"])
        + sum(gpus.stored[part] for part in ("reading", "ridge", "its columns"))
    )
    assert gpus.streamed["total"] == pytest.approx(
        sum(gpus.streamed[part] for part in ("forward", "sums", "ridge", "its columns"))
    )


def test_a_run_reads_each_stored_state_as_often_as_a_plan_says():
    read = Counter()

    class Activations(dict):
        def __getitem__(self, state):
            read[state] += 1
            return super().__getitem__(state)

    rng = np.random.default_rng(0)
    states = Activations({name: rng.normal(size=(60, 4)).astype(np.float32) for name in ("embed", "0", "1")})
    names, targets, test = tuple(map(str, range(60))), rng.normal(size=(60, 1)), np.arange(60) % 5 == 0
    fit_probes(states, EntityTable("numbers", names, targets, ("year",), ("year",), test))
    assert read["0"] == read["1"] == READINGS


def test_fits_follow_from_operations_and_columns(gpus):
    rows = ROWS - ROWS // 5
    one = count_fit(rows, 4096, 12, "gpu")
    # 33 states on 8 GPUs: 5 on the fullest, in as many batches as their memory asks for.
    assert gpus.stored["ridge"] == pytest.approx(5 * one.operations / (0.5 * 67e12))
    batches = gpus.stored["its columns"] / (one.columns * COLUMN_SECONDS)
    assert one.columns == 13 * rows and batches.is_integer() and 1 <= batches <= 5
    # From sums a factor for each fold and penalty, and an inverse for the weights; one state after the other.
    factors = 5 * (60 / 3 + 4 / 3) * 4096**3
    assert gpus.streamed["ridge"] == pytest.approx(factors / (0.5 * 67e12))
    assert gpus.streamed["its columns"] == pytest.approx(5 * 13 * 4096 * COLUMN_SECONDS)


def test_a_gpu_has_room_for_the_sums_in_what_jax_takes():
    sites = ("embed", *(f"{layer}{part}" for layer in range(80) for part in ("", ".mid") if not part or layer < 60))
    made = plan("llama-2-70b", "h100:8", "cities", limit=200, dtype="float32", sites=sites)
    assert made.memory == 60e9 and made.mesh == {"data": 1, "fsdp": 1, "model": 8}
    # 18 of 141 states on a GPU, five folds, 6 bytes of a little more than half of a square; then the fit of one state.
    least = made.parameters + 18 * 5 * 6 * 8192 * 8192 / 2
    assert least < made.peak_streamed < 1.2 * least
    assert made.fits(True) and not made.fits(False)
    assert "does NOT fit (it does with the variable XLA_CLIENT_MEM_FRACTION=0.7" in "\n".join(words.conclusions(made))


def test_a_plan_that_does_not_fit_says_so():
    made = plan("llama-3.1-405b", "h100:8", "cities", limit=200)
    assert not made.fits(True) and not made.fits(False)
    assert "does NOT fit (name a larger --topology)" in "\n".join(words.conclusions(made))


@pytest.mark.slow
def test_a_config_file_and_the_command_line(tmp_path, capsys):
    fields = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 320, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip
    (tmp_path / "small.json").write_text(json.dumps(fields))
    main(["plan", "--model", str(tmp_path / "small.json"), "--topology", "a100:2", "--limit", "300"])
    out = capsys.readouterr().out
    assert "Model small: 3 layers, width 64" in out and "Mesh data=2" in out and "States stored: peak" in out
    main(["plan", "--model", str(tmp_path / "small.json"), "--topology", "a100:2", "--limit", "300", "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values["mesh"]["data"] == 2 and values["fits_stored"] and values["forward"]["operations"] > 0


@pytest.mark.slow
def test_sites_that_are_named_are_all_that_is_planned_for():
    made = plan("llama-2-7b", "h100:8", "cities", sites=("embed", "3", "7.mid"), limit=200)
    assert made.config.layers == 8  # later blocks are not run
    read = [plan("llama-2-7b", "h100:8", "cities", sites=sites, limit=200).stored["writing"] for sites in (("3",), ())]
    assert made.stored["writing"] == pytest.approx(3 * read[0]) and read[1] == pytest.approx(33 * read[0])


def test_what_can_not_be_planned_is_refused():
    with pytest.raises(InputError, match="mlp.3: neurons are not planned for"):
        plan("llama-2-7b", "h100:8", "cities", sites=("embed", "mlp.3"), limit=100)
    with pytest.raises(InputError, match="K=8 key/value heads do not divide over mesh axis 'model' of size 16"):
        plan("llama-2-70b", "h100:16", "cities", mesh="model=16", limit=100)
    with pytest.raises(InputError, match="Mesh data=4 has 4 devices, and h100:8 has 8"):
        plan("llama-2-70b", "h100:8", "cities", mesh="data=4", limit=100)


@pytest.mark.slow
def test_a_plan_of_gpus_has_a_process_each():
    """Sums are fitted by as many processes as the launcher starts, and each brings a shard of its own."""
    one, eight = (plan("llama-2-7b", f"h100:{count}", "cities", limit=200) for count in (1, 8))
    states = one.config.layers + 1
    assert one.streamed["ridge"] == pytest.approx(states * eight.streamed["ridge"] / -(-states // 8))
    assert eight.step.bins % 8 == 0


# ---- Compiled for chips that are not here -------------------------------------------------------------------------


def in_loop(found, config):
    """Bytes by kind of the collectives that run once a block or more often."""
    count = lambda kind: sum(one.size * one.times for one in found if one.kind == kind and one.times >= config.layers)
    return {kind: count(kind) for kind in KINDS}


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("model", "topology", "mesh"),
    [
        ("llama-2-7b", "h100:8", None),
        ("llama-2-70b", "h100:8", {"data": 1, "fsdp": 1, "model": 8}),
        ("llama-2-7b", "a100:4", {"data": 1, "fsdp": 2, "model": 2}),
        ("llama-2-70b", "h200:4", {"data": 1, "fsdp": 1, "model": 4}),
    ],
)
def test_gpus_compile_and_fit(cuda, monkeypatch, model, topology, mesh):
    monkeypatch.setattr(topologies, "_found", lambda module: True)
    made = plan(model, topology, "cities", "Where is {}", limit=ROWS, mesh=mesh and mesh_text(mesh))
    assert made.compiled and not made.refused and made.fits(True) and made.fits(False)
    counted = count_ridge(ROWS - ROWS // 5, made.config.width, 12, "gpu")
    assert [one.name for one in made.ridge] == [f"ridge: {name}" for name in counted]
    assert "Compiled for it here" in "\n".join(words.describe(made))
    _, config = find_published(model)
    counted = count_step(config, made.step, made.mesh, "bfloat16", "gpu")
    # XLA does not count for GPUs; what it allots is what shapes say, beside a few numbers of the root and the loop.
    assert made.forward.operations == counted.operations
    assert made.forward.arguments == pytest.approx(counted.arguments, rel=1e-3)
    assert made.forward.outputs == pytest.approx(counted.outputs, rel=1e-3)
    assert 0.5 * counted.temporary <= made.forward.temporary <= 1.1 * counted.temporary, counted
    found, expected = in_loop(made.forward.collectives, config), in_loop(counted.collectives, config)
    assert found == pytest.approx(expected, rel=0.01)
    once = sum(one.sent for one in made.forward.collectives if one.times < config.layers)
    assert once <= 0.02 * sum(one.sent for one in made.forward.collectives)
    sums = count_sums(config.layers + 1, ROWS, FOLDS, config.width, 2, made.machine.count, "bfloat16")
    assert made.moments.outputs == sums.outputs


@pytest.mark.cuda
def test_a_step_on_an_h100_takes_little_beside_weights_and_states(cuda):
    """Llama-2-7B, 128 bins of 128 slots: products between weights in bfloat16, rows as they are stored."""
    _, config = find_published("llama-2-7b")
    states = ("embed", *map(str, range(config.layers)))
    mesh = make_mesh({"data": 1}, topologies.gpu_devices(parse_topology("h100:1")))
    program = lambda root: forward_program(config, states, Step(128, 128, root, 72, 33), mesh, "bfloat16")
    short, long = program(16), program(512)
    assert short.temporary <= 1.6e9
    # A chat template's keys are there once, not for each bin (which took 3.5 GB), and its scores in float32.
    assert long.temporary <= short.temporary + 1.2 * 4 * 128 * 128 * 32 * 512 <= 3e9


def assert_room_for_the_fit(devices, width):
    """Of one state from the sums of five folds."""
    mesh, platform = layer_mesh(devices[:1]), devices[0].platform
    with jax.enable_x64(False), topologies.without_cache(), topologies.with_little_effort():
        function, *arguments = sums_programs(mesh, 1, FOLDS, width, 2, 12)["five folds"]
        compiled = function.lower(*arguments).compile(topologies.compiler_options(platform))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary <= device_fit_memory(FOLDS, width, "tpu" if platform == "tpu" else "gpu") <= 1.3 * temporary


@pytest.mark.cuda
@pytest.mark.parametrize("width", [1024, 2 * max(TOGETHER.values())])
def test_a_fit_from_sums_has_room_on_gpus(cuda, width):
    assert_room_for_the_fit(topologies.gpu_devices(parse_topology("h100:1")), width)


@pytest.mark.libtpu
@pytest.mark.parametrize("width", [1024, 2 * max(TOGETHER.values())])
def test_a_fit_from_sums_has_room_on_tpus(libtpu, width):
    assert_room_for_the_fit(topologies.tpu_devices(parse_topology("v5p:2x2x1")), width)


@pytest.fixture
def little_effort():
    """The forward too; the smallest model's is compiled as a user's plan does."""
    with topologies.with_little_effort():
        yield


@pytest.mark.libtpu
@pytest.mark.parametrize(
    ("model", "topology", "mesh"),
    [
        ("llama-2-7b", "v5e:2x4", {"data": 4, "fsdp": 1, "model": 2}),
        ("llama-2-70b", "v5e:8x8", {"data": 2, "fsdp": 4, "model": 8}),
        ("llama-3.1-405b", "v5p:2x2x4", {"data": 1, "fsdp": 2, "model": 8}),
    ],
)
def test_slices_compile_and_fit(libtpu, request, model, topology, mesh):
    if model != "llama-2-7b":
        request.getfixturevalue("little_effort")
    made = plan(model, topology, "cities", "Where is {}", limit=ROWS)
    assert made.mesh == mesh and made.compiled and not made.refused
    assert made.peak_stored < made.memory and made.fits(True)
    _, config = find_published(model)
    counted = count_step(config, made.step, mesh, "bfloat16", "tpu")
    # The compiler adds what is not a matrix product: norms, softmax, rotations.
    assert made.forward.operations == pytest.approx(counted.operations, rel=0.03)
    assert made.forward.outputs == pytest.approx(counted.outputs, rel=0.001)
    # In the loop over blocks: one block's weights are gathered, the residual stream is summed twice, and nothing else.
    found, expected = in_loop(made.forward.collectives, config), in_loop(counted.collectives, config)
    assert found == pytest.approx(expected, rel=0.01)
    gate = 2 * config.width * config.mlp_width // mesh["model"]
    gathered = [one for one in made.forward.collectives if one.kind == "all-gather" and one.times >= config.layers]
    assert all(one.size <= gate for one in gathered)  # not the weights of all blocks ahead of the loop
    # Outside of it the embedding is looked up, which is little beside one block.
    once = sum(one.sent for one in made.forward.collectives if one.times < config.layers)
    assert once <= 0.02 * sum(one.sent for one in made.forward.collectives)


@pytest.mark.libtpu
def test_what_the_compiler_refuses_does_not_fit(libtpu, little_effort):
    made = plan("llama-2-70b", "v5e:2x4", "cities", limit=300)
    assert made.forward.refused and not made.fits(True) and not made.fits(False)
    assert "does NOT fit" in "\n".join(words.conclusions(made))
