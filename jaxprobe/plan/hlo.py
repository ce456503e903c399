"""Collectives in a compiled program's text, with the number of times that each one runs.

XLA writes a loop's body once, whatever its number of turns, and its cost analysis counts it once.
"""

import math
import re
from collections import defaultdict

from jaxprobe.cost.counts import Collective

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, from its HLO text."""
    computations = _computations(text)
    found: dict[str, Collective] = {}
    for name, times in _times(computations).items():
        for line in computations[name]:
            match = _COLLECTIVE.search(line)
            if match is None:
                continue
            kind, size = match[2], _size(match[1], started=match[3] is not None)
            # A TPU's reduce-scatter is an all-reduce inside of a fusion that keeps a part.
            kind = "reduce-scatter" if "all-reduce-scatter" in name else kind
            devices = _group_size(line)
            size *= devices if match[2] == "reduce-scatter" else 1
            # One that overlaps with other work is written in several places, on one channel.
            channel = re.search(r"channel_id=(\d+)", line)
            key = channel[1] if channel else line
            if devices > 1:
                found[key] = Collective(kind, size, devices, max(times, found[key].times if key in found else 0))
    return list(found.values())


def turns(text: str) -> int:
    """How often the body of a loop runs in one call, at most; 1 without a loop. Inner loops run for each outer turn."""
    computations = _computations(text)
    times = _times(computations)
    return max((times[body] for body in _loops(computations) if body in times), default=1)


def _computations(text: str) -> dict[str, list[str]]:
    """Name -> lines; the entry's name is ``ENTRY``."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in text.splitlines():
        match = _COMPUTATION.match(line)
        if match:
            lines = found.setdefault("ENTRY" if line.startswith("ENTRY") else match[1], [])
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)
    return found


def _loops(computations: dict[str, list[str]]) -> dict[str, int]:
    """Body -> turns: as the compiler says (GPU, CPU), or else the number that the loop's counter is compared with."""
    found = {}
    for lines in computations.values():
        for line in lines:
            body = re.search(r" while\(.*body=%?([\w.\-]+)", line)
            if body:
                condition = re.search(r"condition=%?([\w.\-]+)", line)[1]
                limits = re.findall(r'"known_trip_count":\{"n":"(\d+)"\}', line) or re.findall(
                    r"s32\[\]\S* constant\((\d+)\)", "\n".join(computations[condition])
                )
                found[body[1]] = max(map(int, limits), default=1)
    return found


def _times(computations: dict[str, list[str]]) -> dict[str, int]:
    """Computation -> how often it runs in one call of the program."""
    loops = _loops(computations)
    times: dict[str, int] = defaultdict(int)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in computations[name]:
            for called in _CALLED.findall(line):
                if called in computations:
                    visit(called, count * loops.get(called, 1))

    visit("ENTRY", 1)
    return dict(times)


def _size(shape: str, started: bool) -> int:
    """Bytes of a result; that of an operation which only starts here also names its operand."""
    parts = [
        _BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides in _SHAPE.findall(shape)
    ]
    return max(parts) if started else sum(parts)


def _group_size(line: str) -> int:
    """Devices of one replica group, in any of the three ways that XLA writes groups."""
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line)
    if axes:
        sizes = dict(re.findall(r"'?(\w+)'?=(\d+)", axes[1]))
        return math.prod(int(sizes[axis.strip(" '")]) for axis in axes[2].split(",") if axis.strip())
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", line)
    if iota:
        return int(iota[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return len(listed[1].split(","))
    return 2 if "source_target_pairs" in line else 1
