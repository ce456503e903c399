"""Does this installation work? Each check is a line; together they are what a bug report needs."""

import itertools
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from packaging.requirements import Requirement

from jaxprobe.data.catalog import list_datasets
from jaxprobe.errors import InputError, first_line
from jaxprobe.extract.extraction import Extraction, extract_states, plan_extraction
from jaxprobe.host.machine import free_memory
from jaxprobe.host.paths import as_path, is_local
from jaxprobe.mesh import make_mesh
from jaxprobe.models.files.source import DEMO_MODEL
from jaxprobe.models.load import ModelFiles, open_model, read_weights

# Short and long names, one token and many, other scripts: a wrong position or splitting shows in one of them.
NAMES = ("Paris", "New York City", "Ouagadougou", "Łódź", "São Paulo", "北京", "القاهرة", "St. John's")
# Both forwards are float32, so they differ by rounding: 1e-5 of a state's length at worst on the models that the tests
# have, and more with depth and width. A wrong rotary frequency, norm or position gives 1e-2 and more.
PARITY = 1e-4
# A product of two 512 x 512 matrices in float32 is off by 1e-7 to 1e-6; with TF32 or bfloat16 passes by 1e-4 and more.
PRECISION = 1e-5
# What the demo takes at its peak, with everything around it.
DEMO_BYTES = 3e9
# Not required, or by others: worth knowing where they are installed.
BESIDE = ("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "torch")
VARIABLES = (
    "JAX_PLATFORMS", "XLA_FLAGS", "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_MEM_FRACTION", "LIBTPU_INIT_ARGS",
    "CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64",
    "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "OMP_NUM_THREADS", "HF_HUB_OFFLINE", "JAXPROBE_DATA",
)  # fmt: skip

PCI_DEVICES = Path("/sys/bus/pci/devices")
# A TPU is known by its numbers on the bus, as JAX knows it: /dev has other names for each generation. These are v2 and
# v3, one without a public name, v4, v5p, v5e, v6e and 7x; Google's network cards and disks have other numbers.
GOOGLE, TPUS = "0x1ae0", ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")


class Check(NamedTuple):
    """One thing that was looked at: a note is worth knowing, something wrong needs its remedy."""

    kind: Literal["ok", "note", "wrong"]
    name: str
    found: str
    remedy: str = ""


def run_checks(model: str = DEMO_MODEL, tokenizer: str | None = None) -> Iterator[Check]:
    """Looks at the installation, the devices, memory, and the model against its reference, in this order.

    Args:
      model: ``demo``, a Hugging Face folder, a ``.gguf`` file, or a hub name.
      tokenizer: a folder or hub name, where the model's own is not to be used.
    """
    checks: Sequence[Callable[[], Iterator[Check]]] = (
        check_packages,
        check_environment,
        check_devices,
        check_arithmetic,
        check_room,
        check_tables,
        lambda: check_model(model, tokenizer),
    )
    for check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever a broken installation raises; nothing after it would be more telling
            words = str(error).strip().splitlines() or ["without words"]
            remedy = "pip install --upgrade --force-reinstall jaxprobe; else report this, with all of these lines."
            yield Check("wrong", "installation", f"{type(error).__name__}: {words[0]}", remedy)
            return


def check_packages() -> Iterator[Check]:
    """Python, the system, and every required package with its version."""
    yield Check("ok", "system", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    found, problems = [], []
    for text in metadata.requires("jaxprobe") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed")
            continue
        found.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} is {version}, wanted {requirement.specifier}")
    found += [f"{name} {metadata.version(name)}" for name in BESIDE if _is_installed(name)]
    yield Check("ok", "packages", f"jaxprobe {metadata.version('jaxprobe')}, {', '.join(found)}")
    if problems:
        yield Check("wrong", "packages", "; ".join(problems), "pip install --upgrade jaxprobe")


def _is_installed(name: str) -> bool:
    return any(metadata.distributions(name=name))


def check_environment() -> Iterator[Check]:
    """The variables that change what JAX, BLAS or the hub do, where they are set."""
    found = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    yield Check("ok", "environment", _without_home(", ".join(found)) or "none of the variables that matter is set")
    if "OPENBLAS_CORETYPE" in os.environ:
        yield Check("note", "environment", "OPENBLAS_CORETYPE is set, which can slow NumPy and scikit-learn down")
    folder = os.environ.get("JAXPROBE_DATA")
    if folder and not as_path(folder).is_dir():
        found = f"JAXPROBE_DATA names {_without_home(folder)}, which is no folder"
        yield Check("wrong", "environment", found, "Name the folder of the paper's tables, or unset it.")


def check_devices() -> Iterator[Check]:
    """What JAX runs on, and accelerators of this machine that it does not see."""
    devices = jax.devices()
    kinds = sorted({f"{device.platform} ({device.device_kind})" for device in devices})
    yield Check("ok", "devices", f"{len(devices)} x {', '.join(kinds)}; {os.cpu_count()} CPU cores")
    for device in jax.local_devices():
        memory = device.memory_stats() if device.platform != "cpu" else None
        if memory and "bytes_limit" in memory:
            used, limit = memory["bytes_in_use"] / 1e9, memory["bytes_limit"] / 1e9
            yield Check("ok", "devices", f"device {device.id}: {used:.1f} of {limit:.1f} GB in use")
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if devices[0].platform != "cpu" or chosen == "cpu":
        return
    # A container may have another GPU than the machine's first.
    gpu, tpu = any(Path("/dev").glob("nvidia[0-9]*")), has_tpu(PCI_DEVICES)
    for what, there, extra in (("an NVIDIA GPU", gpu, "cuda"), ("a TPU", tpu, "tpu")):
        if there:
            remedy = f'pip install "jaxprobe[{extra}]" (JAX_PLATFORMS=cpu says that the CPU is meant)'
            yield Check("wrong", "devices", f"this machine has {what}, and JAX runs on the CPU", remedy)


def has_tpu(devices: Path) -> bool:
    """Whether one is among the devices of a bus, each a folder with the files ``vendor`` and ``device``."""
    return any(
        (device / "vendor").read_text().strip() == GOOGLE and (device / "device").read_text().strip() in TPUS
        for device in devices.glob("*")
    )


def check_arithmetic() -> Iterator[Check]:
    """A float32 product at full precision and a float64 eigendecomposition, which the probes rest on."""
    a, b = np.random.default_rng(0).standard_normal((2, 512, 512))
    exact = a.astype(np.float32).astype(np.float64) @ b.astype(np.float32).astype(np.float64)
    found = np.asarray(jnp.matmul(a.astype(np.float32), b.astype(np.float32), precision="highest"), np.float64)
    error = np.abs(found - exact).max() / np.abs(exact).max()
    if error <= PRECISION:
        yield Check("ok", "arithmetic", f"float32 products within {error:.0e}")
    else:
        found = f"float32 products are off by {error:.0e}, wanted {PRECISION:.0e}"
        yield Check("wrong", "arithmetic", found, "Unset NVIDIA_TF32_OVERRIDE and XLA_FLAGS; update the driver.")
    if jax.default_backend() == "tpu":  # which has no float64 linear algebra: the host solves it
        return
    gram = exact.T @ exact
    with jax.enable_x64(True):
        values = np.asarray(jnp.linalg.eigvalsh(gram))
    error = np.abs(values - np.linalg.eigvalsh(gram)).max() / values.max()
    if error <= 1e-12:  # a few hundred roundings of 1e-16
        yield Check("ok", "arithmetic", f"float64 eigenvalues within {error:.0e}")
    else:
        found = f"float64 eigenvalues are off by {error:.0e}, wanted 1e-12"
        yield Check("wrong", "arithmetic", found, "Unset JAX_ENABLE_X64 and XLA_FLAGS; reinstall jaxlib.")


def check_room() -> Iterator[Check]:
    """Memory, and the disk of the current folder."""
    memory, disk = free_memory(), shutil.disk_usage(Path.cwd()).free
    for what, free, remedy in (
        ("memory", memory, "Close other programs, or take fewer rows with --limit."),
        ("disk here", disk, "Free some space, or name a folder on another disk with --out."),
    ):
        found = "not known on this system" if free is None else f"{free / 1e9:.1f} GB free"
        if free is None or free >= DEMO_BYTES:
            yield Check("ok", what, found)
        else:
            yield Check("note", what, f"{found}; the demo wants {DEMO_BYTES / 1e9:.0f}", remedy)


def check_tables() -> Iterator[Check]:
    """Which of the named tables are at hand."""
    here = [listing.name for listing in list_datasets() if listing.location]
    yield Check("ok", "tables", ", ".join(here))


def check_model(name: str, tokenizer: str | None = None) -> Iterator[Check]:
    """A model's states of a few names in float32 against Hugging Face PyTorch, where that is installed."""
    try:
        files = open_model(name, tokenizer=tokenizer)
    except InputError as error:
        missing = name == DEMO_MODEL and "is not installed" in str(error)  # nobody asked for it
        for problem in error.problems:
            fact, _, remedy = problem.partition(". ")
            yield Check("note" if missing else "wrong", "model", fact, remedy)
        return
    config = files.config
    size = f"{config.layers} layers, width {config.width}, {config.parameter_count() / 1e6:,.0f} M parameters"
    yield Check("ok", "model", f"{files.source.name}: {size}")
    if not is_local(files.source.path):
        yield Check("note", "parity", "not compared: transformers reads no bucket", "Compare a copy on a disk.")
        return
    if find_spec("torch") is None:
        yield Check("note", "parity", "not compared: PyTorch is not installed", "pip install torch accelerate")
        return
    needed, free = 3 * 4 * config.parameter_count(), free_memory()
    if free is not None and free < needed:
        found = f"not compared: that takes {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        yield Check("note", "parity", found, "Compare on a machine with more memory.")
        return
    try:
        yield compare_states(files)
    except ImportError as error:  # what transformers needs beside PyTorch
        yield Check("note", "parity", f"not compared: {first_line(error)}", "pip install accelerate")


def compare_states(files: ModelFiles) -> Check:
    """The largest difference at any state, as a share of the state's length."""
    mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
    extraction = plan_extraction(files, NAMES, "{}", mesh=mesh, final_norm=True)
    found = extract_states(read_weights(files, mesh, "float32"), NAMES, "{}", final_norm=True)
    expected = reference_states(files, extraction)
    errors = {
        state: np.linalg.norm(found[state] - truth, axis=1) / np.linalg.norm(truth, axis=1)
        for state, truth in expected.items()
    }
    state = max(errors, key=lambda state: errors[state].max())
    worst = errors[state].max()
    words = f"{len(NAMES)} names x {len(errors)} states against Hugging Face PyTorch: within {worst:.0e} ({state})"
    if worst <= PARITY:
        return Check("ok", "parity", words)
    first = next(state for state in errors if errors[state].max() > PARITY)
    found = f"{words}; wanted {PARITY:.0e}. The first state that differs: {first}, {NAMES[errors[first].argmax()]!r}"
    return Check("wrong", "parity", found, "Its scores can't be trusted: please report this, with all of these lines.")


def reference_states(files: ModelFiles, extraction: Extraction) -> dict[str, np.ndarray]:
    """State -> [N, D] of the same tokens by transformers' own code in float32.

    All texts at once, filled up at the end: what follows a token changes nothing of it.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    path, options = files.source.path, {"dtype": torch.float32, "attn_implementation": "eager"}
    if files.source.is_gguf:
        dense = transformers.GgufConfig(path.name, dequantize=True)
        path, options = path.parent, options | {"gguf_file": path.name, "quantization_config": dense}
    model = transformers.AutoModelForCausalLM.from_pretrained(path, **options).eval()
    last = []  # the last block's output: what Hugging Face calls the last hidden state is after the final norm
    decoder = getattr(model.base_model, "language_model", model.base_model)
    blocks = decoder.h if hasattr(decoder, "h") else decoder.layers
    blocks[-1].register_forward_hook(lambda module, inputs, output: last.append(output))
    tokens = extraction.tokens
    texts = [torch.tensor(tokens.ids[b:e]) for b, e in itertools.pairwise(tokens.starts)]
    with torch.inference_mode():
        filled = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        *before, normed = model(filled, attention_mask=torch.ones_like(filled), output_hidden_states=True).hidden_states
    before_norm = last[0][0] if isinstance(last[0], tuple) else last[0]
    rows, ends = np.arange(len(texts)), np.array([len(text) - 1 for text in texts])
    states = (state.numpy()[rows, ends] for state in (*before, before_norm, normed))
    return dict(zip(files.config.states(), states, strict=True))


def _without_home(text: str) -> str:
    """The user's own folder is nobody's business in a public bug report."""
    return text.replace(str(Path.home()), "~") if Path.home() != Path("/") else text
