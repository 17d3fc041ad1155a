"""Opens single weights files safely: no code in them is executed, and the content must match the file name."""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.lazy import LazyTensors

SAFETENSORS, TORCH, OLD_TORCH = "a safetensors file", "a PyTorch file", "an old PyTorch file"
TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer (the weights themselves were not downloaded: git lfs pull)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
)


def open_safetensors(paths: Sequence[Path]) -> tuple[LazyTensors, dict[str, str]]:
    """Tensors (memory-mapped) and metadata of one or several safetensors files.

    Raises:
        WeightsError: a file is missing, damaged or of another type.
    """
    readers: dict[str, Callable[[], Tensor]] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        check_type(path)
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path}: a damaged safetensors file ({error})") from error
        metadata |= file.metadata() or {}
        readers |= {name: partial(file.get_tensor, name) for name in file.keys()}
    return LazyTensors(readers), metadata


def file_type(path: Path) -> str:
    """Type of a file by its content, in words."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "an empty file"
    for beginning, words in _BEGINNINGS:
        if head.startswith(beginning):
            return words
    if head[:4] == b"PK\x03\x04":
        return _zip(path)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return SAFETENSORS
    if head[0:1] == b"\x80" and head[1] <= 5:
        # torch's format before 1.6 begins with a pickled magic number
        return OLD_TORCH if b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head[:32] else "a bare pickle"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (a failed download?)"
    if head[257:262] == b"ustar":
        return "a tar archive"
    try:
        head[:500].decode("utf-8")
    except UnicodeDecodeError:
        return "an unknown type of file"
    return "text"


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return "a damaged or unfinished zip archive (a download that broke off?)"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive, which holds code"
    if any(name.endswith("/data.pkl") for name in names):
        return TORCH
    return "a zip archive that is no PyTorch file"


def check_type(path: Path) -> str:
    """Return the type of a weights file: `SAFETENSORS`, `TORCH` or `OLD_TORCH`.

    Raises:
        WeightsError: another type, or content that does not match the file name.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    content, suffix = file_type(path), path.suffix.lower()
    if suffix == ".safetensors":
        good, says = content == SAFETENSORS, SAFETENSORS
    elif suffix in TORCH_SUFFIXES:
        good, says = content in (TORCH, OLD_TORCH), TORCH
    else:
        good, says = content in (SAFETENSORS, TORCH, OLD_TORCH), "weights (safetensors, or a PyTorch file)"
    if not good:
        raise WeightsError(f"{path}: by its name {says}, found {content}")
    return content


def load_torch(path: Path) -> Any:
    """Content of a PyTorch file, memory-mapped where the format allows it; code in it is never executed.

    Raises:
        WeightsError: damaged, of another type, or with anything but plain data in it.
    """
    mapped = check_type(path) == TORCH
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused: it contains more than plain weights. {_describe_calls(path, mapped, error)}"
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise WeightsError(f"{path}: a damaged PyTorch file ({type(error).__name__}: {error})") from error


def _describe_calls(path: Path, mapped: bool, error: Exception) -> str:
    """Functions that loading the file would call. PyTorch's own advice, to trust the file, is left out."""
    names = set(re.findall(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)))
    if mapped:
        try:
            names |= set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        except Exception:  # a hostile file may break this too; it is rejected anyway
            pass
    what = f"Loading it would run code: {', '.join(sorted(names)[:8])}. " if names else ""
    if names and names <= _HARMLESS.keys():
        return what + f"These only make plain values. Two lines of Python keep the tensors alone:\n{_conversion(path, names)}"
    return what + "Save the tensors alone (safetensors)"


# Classes and functions that only hold values, as files of training code have them -> what `safe_globals` takes for them.
_HARMLESS = {
    **{
        f"numpy.{core}.multiarray.{name}": f"(numpy._core.multiarray.{name}, 'numpy.{core}.multiarray.{name}')"
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    },
    "numpy.dtype": "numpy.dtype",
    "numpy.ndarray": "numpy.ndarray",
    "_codecs.encode": "codecs.encode",
    "argparse.Namespace": "argparse.Namespace",
    "pathlib.PosixPath": "pathlib.PosixPath",
    "collections.defaultdict": "collections.defaultdict",
}


def _conversion(path: Path, names: set[str]) -> str:
    """Two lines that load a file with these names alone allowed, and save what holds nothing but tensors."""
    allowed = ", ".join(_HARMLESS[name] for name in sorted(names))
    if any(name.startswith("numpy.") for name in names):
        allowed += ", *{type(numpy.dtype(kind)) for kind in '?bBhHiIlLqQefd'}"
    out = path.with_name(f"{path.stem}-tensors{path.suffix}")
    modules = "argparse, codecs, collections, pathlib, numpy, torch"
    load = f"torch.load({str(path)!r}, map_location='cpu', weights_only=True)"
    keep = "torch.is_tensor(v) or isinstance(v, dict) and v and all(map(torch.is_tensor, v.values()))"
    return (
        f"import {modules}; torch.serialization.add_safe_globals([{allowed}]); content = {load}\n"
        f"torch.save({{k: v for k, v in content.items() if {keep}}}, {str(out)!r})"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        WeightsError: the file is missing or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path}: by its name JSON, found {file_type(path)} ({error})") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value
