"""The whole paper as one number: the forward tokens of its tables and prompts, and hours for Llama-2 on named chips.

    python benchmarks/paper.py --result benchmarks/results/extraction-cpu.json

Counted: for every table at hand and each of its prompts, the distinct prefixes, the slots that jaxprobe runs, and
the tokens that the paper's loop runs (batches of 128 in file order, padded to the longest).
Assumed, and printed: see ASSUMED.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python sees only this folder


from benchmarks.baselines.batches import PAPER_BATCH, in_file_order
from jaxprobe.cost.chips import CHIPS
from jaxprobe.cost.counts import matrix_weights
from jaxprobe.data.catalog import list_datasets, load_table
from jaxprobe.data.prompt import list_prompts
from jaxprobe.data.tokens import tokenize
from jaxprobe.extract.trie import plan_bins
from jaxprobe.models.load import open_model
from jaxprobe.models.published import find_published

MODELS = ("llama-2-7b", "llama-2-13b", "llama-2-70b")
ASSUMED = (
    "Tokens are counted with the demo model's tokenizer (Llama-2's is not at hand; its counts differ somewhat).",
    "Utilisation: the share of the best measured matmul rate that the executed slots reached on the machine of the "
    "result file, each scheme its own, applied to the chip's published dense bfloat16 peak. It was not measured on "
    "these chips.",
    "Only the blocks' weight matrices count (the padded loop's also with its output head); attention's own products, "
    "copies to the host and loading do not. Hours are of one chip; a model that does not fit needs several, and takes "
    "as many chip-hours.",
)


class Counts(NamedTuple):
    """Forward tokens of one table and prompt, by scheme."""

    dataset: str
    prompt: str
    entities: int
    distinct_prefixes: int
    slots: int  # that jaxprobe runs
    padded: int  # that the paper's loop runs


class Scheme(NamedTuple):
    """A share of peak, and operations a token beyond the blocks'."""

    utilisation: float
    head: bool


def count_tables(model: str = "demo") -> list[Counts]:
    """Counts of every table at hand and each of its prompts; the package's own cities are not the paper's."""
    files, found = open_model(model), []
    for listing in list_datasets():
        if listing.location is None or listing.name == "cities":
            continue
        texts = load_table(listing.name).texts
        for prompt in list_prompts(listing.name):
            tokens = tokenize(files.tokenizer, texts, prompt, max_length=files.config.context)
            plan = plan_bins(tokens.ids, tokens.starts, bins=16)
            padded = sum(batch.tokens.size for batch in in_file_order(tokens.ids, tokens.starts, PAPER_BATCH))
            found.append(Counts(listing.name, prompt.name, len(texts), plan.distinct_prefixes, plan.slots, padded))
    return found


def measured_schemes(result: dict[str, Any], dtype: str) -> dict[str, Scheme]:
    """Median utilisations of jaxprobe and of the paper's loop over a result file's tables."""
    share = lambda engine: [
        entry["of_best_matmul"]
        for table in result["tables"]
        for entry in table["engines"]
        if entry["engine"] == engine and entry["dtype"] == dtype
    ]
    found = {engine: sorted(share(engine)) for engine in ("jaxprobe", "paper_loop")}
    return {name: Scheme(shares[len(shares) // 2], name == "paper_loop") for name, shares in found.items()}


def hours(tokens: int, model: str, chip: str, scheme: Scheme) -> float:
    """Hours of one chip: two operations a token for each number in a weight matrix."""
    _, config = find_published(model)
    weights = config.layers * matrix_weights(config) + scheme.head * config.width * config.vocabulary
    return 2 * weights * tokens / (CHIPS[chip].bfloat16 * 1e12 * scheme.utilisation) / 3600


def main(result: Path = Path("benchmarks/results/extraction-cpu.json"), dtype: str = "float32") -> None:
    """Print forward tokens and predicted hours for the paper's tables at hand.

    Args:
        result: Result file of benchmarks/extraction.py, for the utilisations.
        dtype: Whose utilisations to take from it.
    """
    measured = json.loads(result.read_text())
    counts, schemes = count_tables(), measured_schemes(measured, dtype)
    if not counts:
        sys.exit("No table of the paper is at hand: name their folder in JAXPROBE_DATA (jaxprobe data fetch).")
    print("| table, prompt | entities | distinct prefixes | jaxprobe's slots | the padded loop's tokens |")
    print("|---|---:|---:|---:|---:|")
    for one in counts:
        print(
            f"| {one.dataset}, {one.prompt} | {one.entities:,} | {one.distinct_prefixes:,} | {one.slots:,} "
            f"| {one.padded:,} |"
        )
    slots, padded = sum(one.slots for one in counts), sum(one.padded for one in counts)
    prefixes = sum(one.distinct_prefixes for one in counts)
    tables = len({one.dataset for one in counts})
    print(f"| {tables} tables, {len(counts)} prompts | | {prefixes:,} | {slots:,} | {padded:,} |\n")
    print("| model | chip | jaxprobe, hours | padded loop, hours |\n|---|---|---:|---:|")
    for model in MODELS:
        for chip in CHIPS:
            ours = hours(slots, model, chip, schemes["jaxprobe"])
            theirs = hours(padded, model, chip, schemes["paper_loop"])
            print(f"| {model} | {CHIPS[chip].name} | {ours:.2f} | {theirs:.2f} |")
    shares = ", ".join(f"{name} {scheme.utilisation:.0%}" for name, scheme in schemes.items())
    print(f"\nUtilisation ({dtype}, {measured['machine']['processor']}): {shares}.")
    for line in ASSUMED:
        print(f"- {line}")


if __name__ == "__main__":
    tyro.cli(main)
