"""Counter-based random numbers: a pure function of (seed, stream, index, draw), bit-identical in numpy and torch.

With a stateful generator, the numbers of an image depend on how many images its rank has processed before. A hash of the
image's own number does not, so the numbers stay the same for any world size, micro-batch and starting step. The hash is
the finaliser of splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), applied to the
key, then to the index, then to the draw. It uses only wrapping 64-bit integer operations, and the last step, 53 bits
times 2**-53, is exact in float64, so CPU and GPU agree to the bit.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Version of everything that is drawn: order, crops, flips, masks, augmentations, start values. A change of any drawn number
# needs a new version and a changelog line. Checkpoints record it; a run resumes only under its own version.
ORDER_VERSION = 2
OTHER_STAND_INS = frozenset({1})  # versions that differ only in what replaces an unreadable image

STREAM_CROP = 1  # index: global sample number
STREAM_FLIP = 2  # index: global sample number
STREAM_MASK_SIZE = 3  # index: step
STREAM_MASK = 4  # index: global sample number
STREAM_ORDER = 5  # index: position in the epoch; the caller folds the epoch into the seed
STREAM_AUGMENT = 8  # index: global sample number; colour and blur
STREAM_STAND_IN = 9  # index: global sample number; draws: attempts
STREAM_DROP = 7  # index: a hash of a context's patches, which are a function of the global sample number
STREAM_MASK_KEEP = 6  # index: global sample number; random subset of a context's available patches

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLY_1 = 0xBF58476D1CE4E5B9
_MULTIPLY_2 = 0x94D049BB133111EB
_UNIT = 2.0**-53


def fold(seed: int, *numbers: int) -> int:
    """Fold numbers into a seed, for streams that depend on several indices, such as an epoch and a position.

    Args:
        seed: Any integer; only its low 64 bits are used.
        *numbers: Integers; their order matters, and only their low 64 bits are used.

    Returns:
        An integer in 0 .. 2**64 - 1.
    """
    key = _mix_int(seed + _GOLDEN)
    for number in numbers:
        # Not key ^ mix(number): the two would cancel for a number equal to the seed.
        key = _mix_int(key + (number + 1) * _GOLDEN)
    return key


def uniform(seed: int, stream: int, index: Tensor, draws: int) -> Tensor:
    """Draw uniform numbers on the device of `index`, without waiting for the device.

    Args:
        seed: The run's seed; any integer.
        stream: One of the STREAM constants.
        index: int64 [n], what the numbers belong to (a global sample number, a step).
        draws: Numbers for each index. The first k of them do not depend on how many are drawn.

    Returns:
        float64 [n, draws] in [0, 1), equal to `uniform_np` of the same arguments.
    """
    key = fold(seed, stream)
    number = torch.arange(1, draws + 1, dtype=torch.int64, device=index.device)
    base = _mix_torch(index * _signed(_GOLDEN) + _signed(key))
    bits = _mix_torch(base[:, None] + number * _signed(_GOLDEN))
    return _logical_shift(bits, 11).to(torch.float64) * _UNIT


def uniform_np(seed: int, stream: int, index: np.ndarray, draws: int) -> np.ndarray:
    """Draw uniform numbers with numpy; same arguments and same numbers as `uniform`, float64 [n, draws]."""
    key = np.uint64(fold(seed, stream))
    golden = np.uint64(_GOLDEN)
    number = np.arange(1, draws + 1, dtype=np.uint64) * golden
    base = _mix_numpy(np.asarray(index, dtype=np.int64).astype(np.uint64) * golden + key)
    bits = _mix_numpy(base[:, None] + number)
    return (bits >> np.uint64(11)).astype(np.float64) * _UNIT


def _mix_int(value: int) -> int:
    """Mix the low 64 bits of a Python integer."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * _MULTIPLY_1) & _MASK64
    value = ((value ^ (value >> 27)) * _MULTIPLY_2) & _MASK64
    return value ^ (value >> 31)


def _mix_numpy(value: np.ndarray) -> np.ndarray:
    """Mix a uint64 array elementwise (array products wrap silently)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MULTIPLY_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MULTIPLY_2)
    return value ^ (value >> np.uint64(31))


def _mix_torch(value: Tensor) -> Tensor:
    """Mix an int64 tensor elementwise as uint64, which torch cannot shift on every device."""
    value = (value ^ _logical_shift(value, 30)) * _signed(_MULTIPLY_1)
    value = (value ^ _logical_shift(value, 27)) * _signed(_MULTIPLY_2)
    return value ^ _logical_shift(value, 31)


def _logical_shift(value: Tensor, places: int) -> Tensor:
    """Shift right and fill with zeros; the shift of int64 fills with the sign."""
    return (value >> places) & ((1 << (64 - places)) - 1)


def _signed(value: int) -> int:
    """Reinterpret 64 bits as a signed integer, as torch expects constants."""
    return value - (1 << 64) if value >= 1 << 63 else value
