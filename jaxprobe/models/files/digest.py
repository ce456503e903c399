"""A digest that tells checkpoints apart by their tensors, whatever their files are called."""

import functools
import hashlib
from collections.abc import Iterator

from jaxprobe.host.paths import AnyPath, read_ranges
from jaxprobe.models.files.checkpoint import Checkpoint, Extent

# A checkpoint up to this size is read whole (seconds); of a larger one's larger tensors so many blocks each, spread
# from the first byte to the last, so that no tensor that was trained or converted differently stays unseen.
WHOLE_CHECKPOINT, WHOLE_TENSOR = 2**31, 2**20
BLOCK, BLOCKS = 2**14, 64
_PIECE = 2**20  # bytes that are read at a time


@functools.lru_cache(maxsize=1)  # a run asks twice, and several runs of one model for each
def weights_digest(checkpoint: Checkpoint) -> str:
    """A SHA-256 over every tensor's name, kind, shape and numbers.

    All of the numbers in checkpoints of up to 2 GB, and of tensors of up to 1 MB; of larger ones in larger checkpoints
    64 blocks of 16 kB. Reading 140 GB only to name it would cost minutes. Neither the files' names count nor how the
    tensors are dealt out over them.
    """
    extents, shapes = checkpoint.extents(), checkpoint.shapes()
    all_of_it = sum(extent.size for extent in extents.values()) <= WHOLE_CHECKPOINT
    by_file: dict[AnyPath, list[str]] = {}
    for name in sorted(extents, key=lambda name: extents[name].offset):
        by_file.setdefault(extents[name].path, []).append(name)
    digests = {}
    for path, names in by_file.items():
        ranges = {name: list(_ranges(extents[name], all_of_it)) for name in names}
        read = iter(read_ranges(path, [one for name in names for one in ranges[name]]))
        for name in names:
            digest = hashlib.sha256(f"{extents[name].kind} {list(shapes[name])}\n".encode())
            for _ in ranges[name]:
                digest.update(next(read))
            digests[name] = digest.hexdigest()
    lines = [f"{name} {digests[name]}\n" for name in sorted(digests)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _ranges(extent: Extent, all_of_it: bool) -> Iterator[tuple[int, int]]:
    """(start, stop) of the bytes that are read of a tensor."""
    end = extent.offset + extent.size
    if all_of_it or extent.size <= WHOLE_TENSOR:
        for start in range(extent.offset, end, _PIECE):
            yield start, min(start + _PIECE, end)
        return
    for block in range(BLOCKS):
        start = extent.offset + (extent.size - BLOCK) * block // (BLOCKS - 1)
        yield start, start + BLOCK
