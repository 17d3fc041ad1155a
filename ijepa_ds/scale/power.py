"""Power laws through measured points, with confidence intervals.

    error = E + A * x1^-a1 * x2^-a2 ...          fitted to log(error): relative deviations count

Without E the law is a line in logarithms: least squares, intervals by Student's t. E, the irreducible error, is kept only
if it is identifiable: if its 95 % interval by profile likelihood (the E whose best remaining fit is not significantly
worse by the F test) lies inside of (0, median error). Kaplan et al. 2020, Hoffmann et al. 2022; profile: Bates & Watts
1988, chapter 6.

Bands are envelopes: the widest of the bands of all laws whose E lies in that interval, whether E was kept or not. A band
that takes an E that the points do not determine as known, 0 for instance, is far too narrow beyond the points
(`python -m benchmarks.coverage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

LEVEL = 0.95
_GRID = 100  # values of E that the profile tries, up to the median error
_WIDE = 0.1  # a band of +- 10 % is the widest that an extrapolation may have
_FARTHEST = 1e6
_ROUNDS = 20
_EXPONENTS = (-500, 500)  # beyond them exp() is 0 or infinite


class UnfitError(ValueError):
    """The points do not determine a law; the message says why."""


@dataclass(frozen=True)
class Candidate:
    """A law with one value of E that the points allow.

    Attributes:
        offset: E.
        solution: (log A, a ...).
        covariance: of `solution`, and of E where it was fitted.
        spread: standard deviation of log(error) around the law.
        freedom: points less fitted parameters.
    """

    offset: float
    solution: np.ndarray
    covariance: np.ndarray
    spread: float
    freedom: int

    def predict(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Errors at `x: [n, k]`, half the 95 % band of the law and of one new run in log(error); each [n]."""
        design = np.column_stack([np.ones(len(x)), -np.log(x)])
        part = np.exp(np.clip(design @ self.solution, *_EXPONENTS))
        value = self.offset + part
        slope = design * (part / value)[:, None]  # of log(error) by the parameters
        if len(self.covariance) > slope.shape[1]:
            slope = np.column_stack([slope, 1 / value])
        variance = np.einsum("ni,ij,nj->n", slope, self.covariance, slope)
        quantile = float(stats.t.ppf((1 + LEVEL) / 2, self.freedom))
        return value, quantile * np.sqrt(variance), quantile * np.sqrt(variance + self.spread**2)


@dataclass(frozen=True)
class Bands:
    """Predicted errors, each array [n]: the law, ends of its 95 % band, ends of the band of one new run."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    low_run: np.ndarray
    high_run: np.ndarray


@dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
        names: of the variables.
        offset: E; 0 where it is not identifiable.
        offset_range: its 95 % interval by profile, within 0 and the median error; None: too few points, so any is possible.
        scale: log A.
        exponents: a, one a variable.
        covariance: of (log A, a ..., E if it was fitted).
        spread: standard deviation of log(error) around the law.
        freedom: points less parameters.
        largest: value of each variable.
        candidates: laws that the points allow besides this one; all of them make the bands.
    """

    names: tuple[str, ...]
    offset: float
    offset_range: tuple[float, float] | None
    scale: float
    exponents: tuple[float, ...]
    covariance: np.ndarray
    spread: float
    freedom: int
    largest: tuple[float, ...] = ()
    candidates: tuple[Candidate, ...] = ()

    @property
    def quantile(self) -> float:
        """Student's t for the two-sided 95 %."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.freedom))

    def interval(self, variable: int) -> tuple[float, float]:
        """95 % interval of an exponent."""
        half = self.quantile * float(np.sqrt(self.covariance[1 + variable, 1 + variable]))
        return self.exponents[variable] - half, self.exponents[variable] + half

    def itself(self) -> Candidate:
        """This law as a candidate."""
        solution = np.array([self.scale, *self.exponents])
        return Candidate(self.offset, solution, self.covariance, self.spread, self.freedom)

    def predict(self, x: np.ndarray) -> Bands:
        """Predict errors at `x: [n, k]`."""
        found = [candidate.predict(x) for candidate in (self.itself(), *self.candidates)]
        value, half, run = (np.stack(part) for part in zip(*found, strict=True))
        low, low_run = ((value * np.exp(-width)).min(axis=0) for width in (half, run))
        high, high_run = ((value * np.exp(width)).max(axis=0) for width in (half, run))
        return Bands(value[0], low, high, low_run, high_run)

    def reach(self) -> float:
        """Largest factor on `largest` up to which the law's band stays within +- 10 %; 1: it is wider at once."""
        factors = np.geomspace(1, _FARTHEST, 200)
        bands = self.predict(np.array(self.largest)[None] * factors[:, None])
        wide = np.maximum(bands.high / bands.value, bands.value / bands.low) > 1 + _WIDE
        return float(factors[max(0, int(np.argmax(wide)) - 1)]) if wide.any() else _FARTHEST

    def notes(self) -> list[str]:
        """What the points do not determine, one sentence each."""
        found = []
        for index, name in enumerate(self.names):
            low, high = self.interval(index)
            if low <= 0 <= high:
                found.append(f"the exponent of {name} may be 0 ({low:.3f} to {high:.3f}): the effect is within noise")
        if self.offset_range is None:
            found.append("too few points to look for an irreducible error: the bands allow any")
        elif not self.offset:
            low, high = self.offset_range
            found.append(
                f"the irreducible error is not identifiable: {low:.3g} to {high:.3g} fit as well, and the bands allow all of "
                "them; the line and its exponents have 0"
            )
        return found


def fit(names: Sequence[str], x: np.ndarray, error: np.ndarray) -> Law:
    """Fit a law to points.

    Args:
        names: of the variables.
        x: their values, above 0, [n, k].
        error: above 0, [n].

    Raises:
        UnfitError: too few points, an error of 0 or below, or a variable that does not vary on its own.
    """
    x, error = np.asarray(x, float), np.asarray(error, float)
    if not (np.isfinite(error) & (error > 0)).all():
        raise UnfitError("an error is not above 0 (a score of 100 or more): a power law cannot reach it, no fit")
    design, y = np.column_stack([np.ones(len(x)), -np.log(x)]), np.log(error)
    count, parameters = design.shape
    if count <= parameters:
        raise UnfitError(f"{count} points for {parameters} parameters: no fit; {parameters + 1} are needed at least")
    apart = design[:, 1:] - design[:, 1:].mean(axis=0)
    if np.linalg.matrix_rank(apart, tol=1e-6 * np.sqrt(count)) < parameters - 1:
        raise UnfitError(f"{', '.join(names)} {'do not vary independently' if len(names) > 1 else 'does not vary'}: no fit")
    plain = replace(_line(tuple(names), design, y), largest=tuple(map(float, x.max(axis=0))))
    profile = _profile(plain, design, error)
    if count <= parameters + 1:
        return replace(plain, candidates=tuple(profile))
    return _with_offset(plain, profile, design, error)


def _line(names: tuple[str, ...], design: np.ndarray, y: np.ndarray) -> Law:
    """Fit without E."""
    solution, *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom = len(y) - design.shape[1]
    variance = float(np.sum((y - design @ solution) ** 2)) / freedom
    covariance = variance * np.linalg.inv(design.T @ design)
    return Law(names, 0.0, None, float(solution[0]), tuple(map(float, solution[1:])), covariance, variance**0.5, freedom)


def _profile(plain: Law, design: np.ndarray, error: np.ndarray) -> list[Candidate]:
    """The best fit for each E of a grid from 0 to the median error; the smallest error may lie below E by its noise."""
    y, start, found = np.log(error), np.array([plain.scale, *plain.exponents]), []
    for offset in np.linspace(0, float(np.median(error)), _GRID):
        start, total = _given(offset, design, y, start)
        part = np.exp(np.clip(design @ start, *_EXPONENTS))
        slope = design * (part / (offset + part))[:, None]
        variance = total / plain.freedom
        covariance = variance * np.linalg.pinv(slope.T @ slope)
        found.append(Candidate(float(offset), start, covariance, variance**0.5, plain.freedom))
    return found


def _with_offset(plain: Law, profile: list[Candidate], design: np.ndarray, error: np.ndarray) -> Law:
    """Fit with E if it is identifiable; else without E, with the range of E."""
    y, freedom = np.log(error), plain.freedom - 1
    sums = np.array([candidate.spread**2 * plain.freedom for candidate in profile])
    best = profile[int(np.argmin(sums))]

    def residual(p: np.ndarray) -> np.ndarray:
        return np.log(p[-1] + np.exp(np.clip(design @ p[:-1], *_EXPONENTS))) - y

    bounds = [-np.inf] * design.shape[1] + [0.0], np.inf
    found = optimize.least_squares(residual, [*best.solution, max(best.offset, 1e-12)], bounds=bounds, x_scale="jac")
    total = 2 * float(found.cost)
    limit = max(total, 1e-20) * (1 + float(stats.f.ppf(LEVEL, 1, freedom)) / freedom)
    inside = [candidate for candidate, value in zip(profile, sums, strict=True) if value <= limit]
    if inside and (inside[0].offset <= 0 or inside[-1] is profile[-1]):
        ends = inside[0].offset, inside[-1].offset
        return replace(plain, offset_range=ends, candidates=tuple(inside))
    *solution, offset = map(float, found.x)
    part = np.exp(design @ np.array(solution))
    slope = np.column_stack([design * (part / (offset + part))[:, None], 1 / (offset + part)])
    variance = total / freedom
    covariance = variance * np.linalg.inv(slope.T @ slope)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(covariance[-1, -1]))
    # the grid may be coarser than the interval
    ends = min([offset - half, *(c.offset for c in inside)]), max([offset + half, *(c.offset for c in inside)])
    law = Law(plain.names, offset, ends, solution[0], tuple(solution[1:]), covariance, variance**0.5, freedom)
    return replace(law, largest=plain.largest, candidates=tuple(inside))


def _given(offset: float, design: np.ndarray, y: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
    """The best (log A, a ...) for an E near `start`, by Gauss-Newton with halved steps, and its sum of squares."""

    def at(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        part = np.exp(np.clip(design @ p, *_EXPONENTS))
        return y - np.log(offset + part), part / (offset + part)

    p, (rest, share) = start, at(start)
    for _ in range(_ROUNDS):
        step, *_ = np.linalg.lstsq(design * share[:, None], rest, rcond=1e-10)
        while np.abs(step).max() > 1e-9:
            new_rest, new_share = at(p + step)
            if new_rest @ new_rest <= rest @ rest:
                break
            step = step / 4
        else:
            break
        p, rest, share = p + step, new_rest, new_share
    return p, float(rest @ rest)
