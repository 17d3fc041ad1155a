"""What a GeoTIFF declares as no data: used where its type can hold it, and never taken for 0."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from ijepa_ds.data.rasters import read_window


@pytest.mark.parametrize(
    ("dtype", "declared", "expected"),
    [
        ("uint8", "255", 255.0),
        ("uint8", "0", 0.0),
        ("uint8", "-9999", None),
        ("uint8", "256", None),
        ("uint8", "1.5", None),
        ("uint8", "nan", None),
        ("int16", "-9999", -9999.0),
        ("float32", "-3.4028234663852886e+38", -3.4028234663852886e38),
        ("float32", "-1.797e308", -1.797e308),
        ("float32", "none", None),
    ],
)
def test_the_declared_value_is_used_if_the_type_can_hold_it(
    dtype: str, declared: str, expected: float | None, tmp_path: Path
) -> None:
    pixels = np.arange(64).reshape(8, 8).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=[(42113, "s", 0, declared, True)])
    with (tmp_path / "a.tif").open("rb") as file:
        _, window = read_window(file, None)
    assert window.nodata == expected
    assert np.array_equal(window.pixels[..., 0], pixels)
