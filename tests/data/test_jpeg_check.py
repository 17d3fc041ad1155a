"""Which of libjpeg's warnings mean that pixels are wrong."""

import numpy as np
import pytest

from ijepa_ds.data.jpeg_check import jpeg_damage, without_metadata
from ijepa_ds.data.jpeg_scan import has_stray_marker
from ijepa_ds.data.pillow import decode
from tests.cases.making import coded, photo

JPEG = coded(photo(1, 200, 200))
LARGE = coded(np.random.default_rng(0).integers(0, 256, (160, 160, 3), dtype=np.uint8))
RESTARTS = coded(photo(1, 200, 200), restart_marker_rows=1)


def lies(height: int) -> bytes:
    at = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:at] + height.to_bytes(2, "big") + JPEG[at + 2 :]


def zeroed(jpeg: bytes) -> bytes:
    middle = len(jpeg) // 2
    return jpeg[:middle] + bytes(200) + jpeg[middle + 200 :]


@pytest.mark.parametrize("jpeg", [JPEG, RESTARTS, coded(photo(2), progressive=True), coded(photo(3), "PNG")])
def test_whole_images_have_no_damage(jpeg):
    assert jpeg_damage(jpeg) == jpeg_damage(jpeg, strict=True) == ""


@pytest.mark.parametrize(
    "jpeg",
    [
        JPEG[:-2] + b"\x7f" * 32 + JPEG[-2:],
        JPEG[:2] + b"\xff\xe2\x00\x12ICC_PROFILE\0\x05\x02xx" + JPEG[2:],
        JPEG.replace(b"\xff\xdb", bytes(5) + b"\xff\xdb", 1),
    ],
)
def test_harmless_bytes_count_only_in_the_strict_check(jpeg):
    assert np.array_equal(np.asarray(decode(jpeg)), np.asarray(decode(JPEG)))
    assert jpeg_damage(jpeg) == ""
    assert np.array_equal(np.asarray(decode(without_metadata(jpeg))), np.asarray(decode(JPEG)))


@pytest.mark.parametrize("jpeg", [zeroed(JPEG), zeroed(RESTARTS), lies(40), lies(400), JPEG[:-500] + JPEG[-2:]])
def test_wrong_pixels_are_named(jpeg):
    assert jpeg_damage(jpeg)


def test_damage_behind_harmless_bytes_is_named():
    assert jpeg_damage(zeroed(JPEG).replace(b"\xff\xdb", bytes(5) + b"\xff\xdb", 1))


def test_a_hole_of_zeros_is_no_junk():
    found = []
    for at in range(1000, len(LARGE) - 400, 197):
        damaged = LARGE[:at] + bytes(300) + LARGE[at + 300 :]
        found.append(jpeg_damage(damaged))
        assert found[-1] or not jpeg_damage(damaged, strict=True)
    assert any("hole of zeros" in text for text in found)


def test_pixels_left_over_after_damage_are_told_from_junk():
    rng = np.random.default_rng(0)
    start = LARGE.index(b"\xff\xda") + 14
    left, named = 0, 0
    for at in rng.integers(start, len(LARGE) - 40, 60).tolist():
        junk = rng.bytes(20).replace(b"\xff", b"\xfe")
        assert jpeg_damage(LARGE[:-2] + junk + LARGE[-2:]) == ""
        damaged = LARGE[:at] + junk + LARGE[at + 20 :]
        if "before marker 0xd9" in jpeg_damage(damaged, strict=True):
            left, named = left + 1, named + bool(jpeg_damage(damaged))
    assert left >= 10 and named >= left / 2  # a quarter of them ends with ones by chance


def test_a_marker_inside_the_pixels_is_found():
    middle = (LARGE.index(b"\xff\xda") + len(LARGE)) // 2
    progressive = coded(photo(2, 200, 200), progressive=True, optimize=True)
    for jpeg in (LARGE, JPEG, RESTARTS, progressive, LARGE + b"\xff\xf7", coded(photo(3), "PNG"), b"", JPEG[:30]):
        assert not has_stray_marker(jpeg)
    for marker in ("fff78000", "ffc38000", "ffd8", "ffdb0043", "ffc4001f55", "ffdd0004"):
        content = bytes.fromhex(marker)
        stray = LARGE[:middle] + content + LARGE[middle + len(content) :]
        assert has_stray_marker(stray), marker
        if marker[:4] in ("fff7", "ffc3", "ffd8"):  # with the others, Pillow's pixels depend on what follows
            with pytest.raises(ValueError, match="damaged: the compressed pixels"):
                decode(stray)


def test_bytes_before_a_restart_marker_are_damage():
    at = RESTARTS.index(b"\xff\xd3")
    assert "before marker 0xd3" in jpeg_damage(RESTARTS[:at] + b"\x11\x22\x33" + RESTARTS[at:])
