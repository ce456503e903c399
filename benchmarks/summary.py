"""What follows from the raw timings: entities a second, rates, and where a speed-up comes from."""

from statistics import median
from typing import Any


def summarise(table: dict[str, Any], flops_per_token: int) -> None:
    """Adds the derived figures to each engine of a table, in place.

    A sample's time is scaled to the table by slots, not by batches: an engine's batches differ in length, and how
    many slots the whole table takes is known exactly.
    """
    for entry in table["engines"]:
        estimates = [entry["slots"] * seconds / entry["sample"]["slots"] for seconds in entry["seconds"]]
        seconds = median(estimates)
        entry["table_s"] = seconds
        entry["entities_per_s_samples"] = [table["entities"] / (entry["plan_s"] + estimate) for estimate in estimates]
        entry["entities_per_s"] = table["entities"] / (entry["plan_s"] + seconds)
        entry["slots_per_prefix"] = entry["slots"] / table["distinct_prefixes"]
        work = (flops_per_token + entry["extra_flops"]) * entry["slots"] / 1e9
        executed = work / seconds
        entry["executed_gflops"] = executed
        entry["useful_gflops"] = flops_per_token * table["distinct_prefixes"] / seconds / 1e9
        framework = "jax" if entry["engine"] == "jaxprobe" else "torch"
        measured = table["rates"][f"{framework}-{entry['dtype']}"]
        entry["best_matmul_gflops"] = max(rate for one in measured for rate in one["matmul"].values())
        entry["of_best_matmul"] = executed / entry["best_matmul_gflops"]
        if "scan" in measured[0]:
            scans = [one["scan"] for one in measured]
            entry["scan_gflops"] = median(scans)
            # Round by round: each scan was measured just before the sample that it is compared with.
            shares = (work / estimate / scan for estimate, scan in zip(estimates, scans, strict=True))
            entry["of_scan"] = median(shares)
    ours = {entry["dtype"]: entry for entry in table["engines"] if entry["engine"] == "jaxprobe"}
    for entry in table["engines"]:
        entry["speed_up_of_jaxprobe"] = speed_up(ours[entry["dtype"]], entry)


def speed_up(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How many times faster ours is, as a product: fewer slots x slots a second x what planning takes off."""
    factor = ours["entities_per_s"] / other["entities_per_s"]
    fewer = other["slots"] / ours["slots"]
    rate = (ours["slots"] / ours["table_s"]) / (other["slots"] / other["table_s"])
    return {"factor": factor, "fewer_slots": fewer, "rate": rate, "planning": factor / (fewer * rate)}
