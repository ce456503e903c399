"""Packed sums of symmetric matrices: less than half the room of two float32 numbers for each element, and of the work.

Of x'x only the blocks on and above the diagonal are made and kept: block row i is as wide as block row -1 - i is short,
and the two of them side by side are a row of one rectangle (17/32 of the square). Of every sum what its additions
rounded off is kept too, in 16 bits, so that it has 32 however many shards are added.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt

from jaxprobe.probes.moments import assemble, product

# Block rows: more leave less below the diagonal, and make smaller products.
BLOCKS, BLOCKS_OF_WIDE, WIDE = 8, 16, 4096


class Packing(NamedTuple):
    """Of x'x [D, D] and, beside it, x' of a few columns."""

    width: int  # D
    columns: int

    @property
    def blocks(self) -> int:
        """Block rows."""
        return BLOCKS if self.width < WIDE else BLOCKS_OF_WIDE

    @property
    def block(self) -> int:
        """Rows of a block row."""
        return -(-self.width // self.blocks)

    @property
    def beside(self) -> int:
        """The columns and zeros: another number than a multiple of 8 a TPU lays out anew before and after each use."""
        return -(-self.columns // 8) * 8

    @property
    def rectangle(self) -> tuple[int, int]:
        """The matrix and the columns, packed."""
        return self.blocks // 2 * self.block, (self.blocks + 1) * self.block + 2 * self.beside

    @property
    def words(self) -> tuple[int, int]:
        """The rectangle as float32, and below it its 16 bits, two in a word."""
        rows, columns = self.rectangle
        return rows + rows // 2, columns


def packing(width: int, targets: int) -> Packing:
    """Of the sums of one segment of rows: x'x, with x'y and x'1 beside it."""
    return Packing(width, targets + 1)


def packed_product(x: Float[Array, "n D"], beside: Float[Array, "n c"]) -> Float[Array, "rows columns"]:
    """x'x and x'beside, the rectangle."""
    of = Packing(x.shape[1], beside.shape[1])
    x = jnp.pad(x, ((0, 0), (0, of.blocks * of.block - of.width)))
    right = jnp.concatenate([x, jnp.pad(beside, ((0, 0), (0, of.beside - of.columns)))], axis=1)

    def block_row(i):
        start = i * of.block
        return product(x[:, start : start + of.block].T, right[:, start:])

    pairs = [(block_row(i), block_row(of.blocks - 1 - i)) for i in range(of.blocks // 2)]
    return jnp.concatenate([jnp.concatenate(pair, axis=1) for pair in pairs])


def unpack(rectangle: Float[Array, "rows columns"], of: Packing) -> tuple[Float[Array, "D D"], Float[Array, "D c"]]:
    """(the symmetric matrix, the columns beside it)."""
    block, squares = of.block, of.blocks * of.block
    ends = [squares - i * block + of.beside for i in range(of.blocks)]  # columns of each block row
    pairs = [rectangle[i * block : (i + 1) * block] for i in range(of.blocks // 2)]
    first = [pair[:, : ends[i]] for i, pair in enumerate(pairs)]
    last = [pair[:, ends[i] :] for i, pair in enumerate(pairs)]
    block_rows = first + last[::-1]
    square = assemble(tuple(row[:, : -of.beside] for row in block_rows))[: of.width, : of.width]
    beside = jnp.concatenate([row[:, -of.beside :] for row in block_rows])
    return square, beside[: of.width, : of.columns]


def add_to(words: UInt[Array, "words columns"], value: Float[Array, "rows columns"]) -> UInt[Array, "words columns"]:
    """Adds a rectangle to a sum, and what the addition rounds off to what is kept beside it.

    Source: Knuth, TAOCP vol. 2, section 4.2.2, theorem B.
    """
    total, rest = opened(words)
    new = total + value
    added = new - total
    rest = rest + ((total - (new - added)) + (value - added))
    whole = new + rest
    return _closed(whole, rest - (whole - new))


def sums_of(words: UInt[Array, "... words columns"]) -> Float[Array, "... rows columns"]:
    """The float32 sums."""
    return lax.bitcast_convert_type(words[..., : words.shape[-2] * 2 // 3, :], jnp.float32)


def opened(words: UInt[Array, "... words columns"]) -> tuple[Array, Array]:
    """(the sums, what they were rounded by): two rectangles whose sum is exact to 32 bits."""
    packed = words[..., words.shape[-2] * 2 // 3 :, :]
    halves = packed & jnp.uint32(0xFFFF0000), packed << 16
    rest = jnp.concatenate([lax.bitcast_convert_type(half, jnp.float32) for half in halves], axis=-2)
    return sums_of(words), rest


def _closed(total, rest):  # rest is below the last digit of total
    bits = lambda value: lax.bitcast_convert_type(value, jnp.uint32)
    rest = bits(rest.astype(jnp.bfloat16).astype(jnp.float32))
    half = len(rest) // 2
    return jnp.concatenate([bits(total), rest[:half] | (rest[half:] >> 16)])
