"""Low-shot evaluation: logistic regression on frozen features of a few labelled images a class, over a path of C.

Sources: few-shot logistic regression with 45 values of C (CLIP, DINOv2); the 1 % lists of SimCLR; paper, section 5 (1 %).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ijepa_ds.data.list_text import check_utf8, label_on_line, plain_lines, text_of
from ijepa_ds.data.walk import is_image
from ijepa_ds.evals.features import check_features
from ijepa_ds.evals.linear import standardise

logger = logging.getLogger(__name__)
C_PATH = tuple(float(c) for c in np.logspace(-6, 5, 45))
_MISSING_SHOWN = 5


def draw_per_class(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Choose `per_class` random images of each class; all images of smaller classes.

    Args:
        labels: int64 [n].
        per_class: images of each class.
        seed: of the random choice.

    Returns:
        int64 [k], ascending positions.

    Raises:
        ValueError: `per_class` below 1.
    """
    if per_class < 1:
        raise ValueError(f"--per-class: expected a number from 1, got {per_class}")
    rng = np.random.default_rng(seed)
    values = labels.numpy()
    chosen = [rng.permutation(np.flatnonzero(values == label))[:per_class] for label in np.unique(values)]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def find_listed(file: Path, names: Sequence[str]) -> Tensor:
    """Find the images named in a text file, one a line, such as SimCLR's 1 % list of ImageNet.

    A line matches an image whose name is the line, or ends in "/" and the line. If there is none, endings are left out, so
    that a list of `.JPEG` names fits shards with `.jpg` members.

    Args:
        file: names such as n01440764_10026.JPEG, or class/name.
        names: of the n available images, with folders or a class before the file name.

    Returns:
        int64 [k], ascending positions.

    Raises:
        ValueError: a line matches no image, or several, or has a label.
    """
    if not file.is_file():
        raise ValueError(f"--list: {str(file)!r} is not a file; expected a text file with an image's name on each line")
    listed = [_checked(file, number, line) for number, line in plain_lines(text_of(file, f"--list: {file}"))]
    if not listed:
        raise ValueError(f"--list: {file} has no names in it")
    exact, without_ending = _Names(names, 0), _Names(names, 1)
    found = [exact.positions(name) or without_ending.positions(name) for name in listed]
    for problem, lines in (
        ("names images that --train lacks", [name for name, places in zip(listed, found, strict=True) if not places]),
        (
            "has names that match several images (write class/name)",
            [name for name, places in zip(listed, found, strict=True) if len(places) > 1],
        ),
    ):
        if lines:
            more = f" and {len(lines) - _MISSING_SHOWN} more" if len(lines) > _MISSING_SHOWN else ""
            shown = f"; --train has names such as {names[0]!r}" if names and "lacks" in problem else ""
            raise ValueError(f"--list: {file} {problem}: {', '.join(lines[:_MISSING_SHOWN])}{more}{shown}")
    chosen = sorted({places[0] for places in found})
    if len(chosen) < len(listed):
        logger.warning("--list: %s: %d lines repeat an image, which counts once", file, len(listed) - len(chosen))
    return torch.tensor(chosen)


def _checked(file: Path, number: int, line: bytes) -> str:
    """The name on a line, without blanks around it and with "/" for backslashes."""
    if label_on_line(line):
        raise ValueError(
            f"--list: {file}, line {number}: {line.decode(errors='replace')!r} has more than a name; leave labels out"
        )
    check_utf8(line, f"--list: {file}, line {number}")
    return line.decode().strip().replace("\\", "/").removeprefix("./")


class _Names:
    """Image names by their last part, with or without their endings."""

    def __init__(self, names: Sequence[str], endings: int) -> None:
        self._strip = (lambda name: os.path.splitext(name)[0]) if endings else (lambda name: name)
        self._places: dict[str, list[int]] = {}
        self._names = names
        for position, name in enumerate(names):
            self._places.setdefault(self._strip(name.rpartition("/")[2]), []).append(position)

    def positions(self, name: str) -> list[int]:
        """Positions of the images that a listed name means."""
        wanted = self._strip(name) if is_image(os.fsencode(name)) else name
        places = self._places.get(wanted.rpartition("/")[2], [])
        return [place for place in places if f"/{self._strip(self._names[place])}".endswith(f"/{wanted}")]


def evaluate(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    choose_features: Tensor | None = None,
    choose_labels: Tensor | None = None,
    c: Sequence[float] = C_PATH,
    rows: bool = False,
    max_iterations: int = 1000,
) -> dict[str, float]:
    """Fit once for each C with warm starts, choose the best C on other images, and score it on the test images.

    Args:
        train_features: [n, D] of the few images; standardised by their mean and standard deviation.
        train_labels: int64 [n].
        test_features: [m, D].
        test_labels: int64 [m].
        choose_features: [k, D] of other images, to choose C on; None: the test images (optimistic).
        choose_labels: int64 [k].
        c: values of scikit-learn's C, the inverse L2 strength.
        rows: subtract each image's mean from its features, divide them by their length, and fit no bias. Source:
            `logistic_eval.py` of MSN (Assran et al. 2022), which I-JEPA follows.
        max_iterations: of L-BFGS, for each C.

    Returns:
        `top1` in percent at the chosen `c`; `best_on_test`, the best `top1` over all C; `unconverged`, the
        number of fits that hit the iteration limit; `chosen_on_test` (1 or 0).

    Raises:
        ValueError: sets that do not match or are not finite, a single class, no C, or C not above 0.
    """
    check_features(train_features, train_labels, test_features, test_labels)
    if not c or min(c) <= 0:
        raise ValueError(f"C: expected numbers above 0, got {list(c)}")
    if len(train_labels.unique()) < 2:
        raise ValueError("the training images have a single class: a classifier needs at least two")
    on_test = choose_features is None or choose_labels is None
    chooser = (test_features, test_labels) if on_test else (choose_features, choose_labels)
    train, test, choose = (part.cpu().double().numpy() for part in (train_features, test_features, chooser[0]))  # type: ignore[union-attr]
    x, test_x, choose_x = [centred_rows(part) for part in (train, test, choose)] if rows else standardise(train, test, choose)
    y, test_y, choose_y = (part.cpu().numpy() for part in (train_labels, test_labels, chooser[1]))  # type: ignore[union-attr]
    model = LogisticRegression(max_iter=max_iterations, warm_start=True, fit_intercept=not rows)
    found: list[tuple[float, float, float]] = []  # percent on the images to choose on, C, percent on the test images
    unconverged = 0
    for strength in sorted(c):
        model.set_params(C=strength)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(x, y)
        unconverged += any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        right, on = (100 * float(np.mean(model.predict(a) == b)) for a, b in ((test_x, test_y), (choose_x, choose_y)))
        found.append((on, strength, right))
    _, chosen, top1 = max(found, key=lambda entry: (entry[0], -entry[1]))
    return {
        "top1": top1,
        "c": chosen,
        "best_on_test": max(right for *_, right in found),
        "unconverged": float(unconverged),
        "chosen_on_test": float(on_test),
    }


def centred_rows(features: np.ndarray) -> np.ndarray:
    """Subtract each row's mean and divide the row by its length; rows of zeros stay.

    Args:
        features: [n, D].
    """
    centred = features - features.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(lengths == 0, 1.0, lengths)
