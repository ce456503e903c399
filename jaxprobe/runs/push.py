"""A run's probes on a hub: the files that are shared, the card that says what they are, and the upload."""

import os
import re
import tempfile
from pathlib import Path

import pandas as pd

from jaxprobe.errors import InputError, first_line
from jaxprobe.host.paths import AnyPath
from jaxprobe.html import main_metric, scores_in_words
from jaxprobe.results.results import Run

NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def write_shared(run: Run, name: str, license: str, folder: AnyPath) -> list[AnyPath]:
    """Writes what is shared of a run into a new or empty folder; returns the files.

    README.md (the card), probes.safetensors, scores.csv and, where the run has them, controls.csv.

    Raises:
      InputError: a name that is none, a licence that is not a word, a folder that holds something.
    """
    problems = []
    if not NAME.fullmatch(name):
        problems.append(f"{name!r} is no name on a hub. Write ORG/NAME.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        problems.append(f"Licence {license!r} is not spelled as a hub does, such as mit or cc-by-4.0.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problems.append(f"{folder} is there and is not empty. Name a new folder.")
    if problems:
        raise InputError(*problems)
    files = {
        "README.md": card(run, name, license).encode(),
        "probes.safetensors": run.directory.probes_path.read_bytes(),
        "scores.csv": run.scores.to_csv(index=False).encode(),
    }
    if run.controls is not None:
        files["controls.csv"] = run.controls.to_csv(index=False).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return [folder / file for file in files]


def push(run: Run, name: str, license: str, *, private: bool = False) -> str:
    """Uploads what is shared of a run, in one commit; returns its address.

    Raises:
      InputError: as `write_shared`; or the hub refuses, or can't be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with tempfile.TemporaryDirectory() as folder:
        write_shared(run, name, license, Path(folder) / "shared")
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        try:
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=name, folder_path=Path(folder) / "shared", commit_message="Add probes")
        except (HfHubHTTPError, OSError) as error:
            raise InputError(
                f"{name} can't be uploaded: {first_line(error).rstrip('.')}. Log in with `hf auth login`, or look "
                "at the files with --dry-run FOLDER."
            ) from error
    return str(commit.repo_url)


def card(run: Run, name: str, license: str) -> str:
    """The model card: what was read, where, how well, beside what; how to apply it."""
    label = f" ({len(run.classes)} classes)" if run.label else ""
    heads, rows, _ = scores_in_words(run.scores, run.headline_layer)
    inputs = run.config.get("inputs")
    digest = inputs.get("weights_sha256", "") if isinstance(inputs, dict) else ""
    about = {
        "model": run.model,
        "digest of its weights": digest or "not known",
        "table": run.dataset,
        "prompt": run.wording or "{}",
        "target": ", ".join(run.targets) + label,
        "layer": f"{run.headline_layer}, chosen by {run.chosen_by} on the training rows",
        "training rows": f"{int((run.entities['split'] == 'train').sum()):,}",
        "test rows": f"{int((run.entities['split'] == 'test').sum()):,}",
        "source of the table": run.attribution or "not said",
    }
    lines = [
        "---",
        f"license: {license}",
        "library_name: jaxprobe",
        "tags: [probe, interpretability]",
        "---",
        f"# {_text(name)}",
        "",
        f"Linear probes of {_text(run.model)} that read {_text(', '.join(run.targets))}, made by jaxprobe.",
        "",
        _table(["", ""], [[key, value] for key, value in about.items()]),
        "## Test scores",
        "",
        _table(heads, rows),
        "The layer marked * was chosen without the test rows. `embed` is what the tokens read tell alone.",
        "",
    ]
    if run.controls is not None:
        lines += ["## Beside its controls", "", _controls(run.controls), ""]
    lines += [*(["## Notes", "", *(f"- {_text(note)}" for note in run.notes), ""] if run.notes else [])]
    lines += [
        "A probe shows what can be read from a state, not that the model uses it.",
        "",
        "## Use",
        "",
        "```python",
        "import jaxprobe",
        "",
        f'probes = jaxprobe.load_probes("{name}")',
        f"probes.predict(states)  # [names, width], layer {run.headline_layer} {run.read_at}",
        "```",
        "",
    ]
    return "\n".join(lines)


def _controls(controls: pd.DataFrame) -> str:
    metric = main_metric(controls)
    shown = controls[(controls["target"] == "mean") & (controls["split"] == "test") & (controls["metric"] == metric)]
    rows = [
        [row["control"], row["resampled"], f"{row['value']:.3f}", _interval(row["ci_low"], row["ci_high"])]
        for _, row in shown.iterrows()
    ]
    return _table(["control", "interval over", metric, "95 % interval"], rows)


def _interval(low: float, high: float) -> str:
    return "" if pd.isna(low) or pd.isna(high) else f"{low:.3f} to {high:.3f}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(_text, line)) + " |" for line in lines) + "\n"


def _text(text: str) -> str:
    """Text from data as text: no cell, tag or emphasis of its own."""
    if text == "---":
        return text
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(text).split()))
