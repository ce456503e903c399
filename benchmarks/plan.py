"""Plans of large models on TPU slices and GPUs, for the README's table.

    pip install "jaxprobe[tpu,plan-gpu]"    # for their compilers alone; neither a TPU nor a GPU is needed
    python benchmarks/plan.py --out benchmarks/results/plan.json

The programs are compiled for the slices and the GPUs (without `plan-gpu` these are counted). Nothing is run.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python sees only this folder
os.environ["JAX_PLATFORMS"] = "cpu"  # JAX would look for a TPU where libtpu is installed

from benchmarks.output import write_result
from jaxprobe.host.progress import in_words
from jaxprobe.plan import words
from jaxprobe.plan.planning import plan
from jaxprobe.settings import RunSettings

PLANS = (
    ("llama-2-7b", "v5e:2x4"),
    ("llama-2-70b", "v5e:8x8"),
    ("llama-3.1-405b", "v5p:2x2x4"),
    ("llama-2-70b", "h100:8"),
)


def main(out: Path, dataset: str = "cities", prompt: str = "Where is {}", data_dir: Path | None = None) -> None:
    """Write the plans of one table and prompt.

    Args:
        out: The result file.
        dataset: A named table, or a file.
        prompt: A named prompt of the table, or text with {}.
        data_dir: Folder of the paper's tables; default: the variable JAXPROBE_DATA.
    """
    plans = []
    for model, topology in PLANS:
        made = plan(RunSettings(model, dataset, prompt=prompt, data_dir=data_dir), topology)
        print(f"{model} on {topology}: stored {in_words(made.stored['total'])}, fits {made.fits(True)}")
        plans.append(words.to_json(made))
    versions = {name: version(name) for name in ("jax", "jaxlib", "libtpu")}
    write_result({"versions": versions, "plans": plans}, out)


if __name__ == "__main__":
    tyro.cli(main)
