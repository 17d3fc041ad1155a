"""Peak rates of matrix products by the vendors' data sheets: the denominator of model FLOPs utilisation (MFU)."""

from __future__ import annotations

# 10^12 FLOPs a second, dense: bfloat16, float32 (TF32 off). SXM boards unless the name says otherwise.
DATA_SHEET: dict[str, tuple[float, float]] = {
    "a100": (312, 19.5),
    "h100": (989, 67),
    "h100 pcie": (756, 51),
    "h100 nvl": (835, 60),
    "h200": (989, 67),
    "h200 nvl": (835, 60),
    "b200": (2250, 75),
}


def data_sheet_of(name: str, weight_bytes: int) -> float | None:
    """Return the peak FLOPs a second of a GPU by its name, or None if its data sheet is not known.

    Args:
        name: As the driver reports it, such as "NVIDIA H100 80GB HBM3".
        weight_bytes: 2 (bfloat16) or 4 (float32).
    """
    words = name.lower().replace("-", " ").split()
    for board in ("pcie", "nvl", None):
        for chip in ("a100", "h100", "h200", "b200"):
            row = f"{chip} {board}" if board else chip
            if chip in words and (board is None or board in words) and row in DATA_SHEET:
                return 1e12 * DATA_SHEET[row][0 if weight_bytes == 2 else 1]
    return None
