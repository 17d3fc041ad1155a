"""The form of an image's numbers, channels and type, and the check that the images of a source have one form.

An index keeps it in the upper bits of an entry's `format`; 0: not known, or not whole numbers or floats of 8 bits and more.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ijepa_ds.data.image_header import KINDS, RASTERS
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.index_file import KIND
from ijepa_ds.data.values import ADVICE, Values
from ijepa_ds.errors import UserError

_DEPTHS = ("", "uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")
_SHIFT = 16  # of the channels in `format`; the type is 8 bits above
_RASTER_KINDS = [KINDS.index(kind) for kind in RASTERS]


def form_of(channels: int, depth: str) -> int:
    """Return the bits of `format` for a number of channels, below 256, and a type."""
    return (channels | _DEPTHS.index(depth) << 8) << _SHIFT


_PLAIN = (form_of(1, "uint8"), form_of(3, "uint8"))


def describe_form(form: int) -> str:
    """Return a form in words, such as "4 channels of uint16"."""
    channels, depth = form >> _SHIFT & 0xFF, _DEPTHS[form >> _SHIFT + 8]
    if not form:
        return "a palette, inks, or less than 8 bits a channel"
    return f"{channels} channel{'s' if channels > 1 else ''} of {depth}"


def usual_form(index: ImageIndex) -> int:
    """Return the form that most images of a source have; 0 if these are read as RGB of 8 bits without further keys."""
    readable = index.readable()
    forms = _forms(index, readable)
    forms[_is_rgb(_kinds(index, readable), forms)] = 0
    found, counts = np.unique(forms, return_counts=True)
    return int(found[counts.argmax()]) if len(found) else 0


def describe_forms(index: ImageIndex) -> str:
    """Return the forms of a source in words, such as "; 12 with 4 channels of uint16"; empty if all are read as RGB."""
    readable = index.readable()
    forms = _forms(index, readable)
    if _is_rgb(_kinds(index, readable), forms).all():
        return ""
    counts = Counter(forms.tolist()).most_common()
    return "; " + ", ".join(f"{count:,} with {describe_form(form)}" for form, count in counts)


def with_one_form(index: ImageIndex, values: Values, source: str) -> ImageIndex:
    """Mark images that cannot be read like most of the source as unreadable.

    Args:
        index: of the source.
        values: how its images become channels.
        source: its name in messages.

    Raises:
        UserError: the source as a whole does not fit `values`.
    """
    readable = index.readable()
    if not len(readable):
        return index
    forms = _forms(index, readable)
    if values.plain:
        return _with_rgb(index, readable, forms)
    known, counts = np.unique(forms[forms != 0], return_counts=True)
    if not len(known):
        raise UserError(
            f"data.source: {source!r} has no image of plain channels: they have {describe_form(0)}. An index of an earlier "
            "version does not say: make it again with `ijepa-ds data index`"
        )
    usual = int(known[counts.argmax()])
    channels, depth = usual >> _SHIFT & 0xFF, _DEPTHS[usual >> _SHIFT + 8]
    most = "most images of the source have" if len(known) > 1 or (forms == 0).any() else "the images have"
    if values.chosen is None and channels != values.count:
        raise UserError(
            f"data.source: {source!r}: {most} {describe_form(usual)}, but model.channels is {values.count}: set it to "
            f"{channels}, or choose with data.channels"
        )
    if values.chosen is not None and max(values.chosen) >= channels:
        raise UserError(
            f"data.channels: {list(values.chosen)} names channel {max(values.chosen)}, but {most} {describe_form(usual)} in "
            f"{source!r} (the first is 0)"
        )
    own_range = (_kinds(index, readable) == KINDS.index("DICOM")).all()  # a DICOM's window says what becomes 0 and 1
    if values.high is None and depth != "uint8" and not own_range:
        raise UserError(
            f"data.source: {source!r}: {most} {describe_form(usual)}: set data.scale to the value that becomes 1, such as "
            f"{'1.0' if depth.startswith('float') else '65535'}"
        )
    odd = np.flatnonzero(forms != usual)
    text = f"but most images of the source have {describe_form(usual)}"
    return index.with_bad({int(readable[at]): f"{describe_form(int(forms[at]))}, {text}" for at in odd})


def _forms(index: ImageIndex, positions: np.ndarray) -> np.ndarray:
    return np.asarray(index.entries["format"])[positions] & ~((1 << _SHIFT) - 1)


def _kinds(index: ImageIndex, positions: np.ndarray) -> np.ndarray:
    return np.asarray(index.entries["format"])[positions] & KIND


def _is_rgb(kinds: np.ndarray, forms: np.ndarray) -> np.ndarray:
    """Which images are usually read as RGB of 8 bits, bool [n]: all but TIFF, NumPy files and PNGs of 16 bits."""
    of_pillow = ~np.isin(kinds, _RASTER_KINDS) & (forms >> _SHIFT + 8 != _DEPTHS.index("uint16"))
    return of_pillow | np.isin(forms, _PLAIN)


def _with_rgb(index: ImageIndex, readable: np.ndarray, forms: np.ndarray) -> ImageIndex:
    """Mark TIFF and NumPy files that are not gray or RGB of 8 bits."""
    odd = np.flatnonzero(np.isin(_kinds(index, readable), _RASTER_KINDS) & ~np.isin(forms, _PLAIN))
    return index.with_bad({int(readable[at]): f"{describe_form(int(forms[at]))}: {ADVICE}" for at in odd})
