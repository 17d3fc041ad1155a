"""Health alarms of a run: collapse, slow fall, loss jump, dead predictor, stalled loader.

`Health.point` checks values that are logged anyway. An alarm is raised once, and again only after its condition has been
false for some points. Alarms are appended to `health.jsonl` in the run directory; the reporter also writes them to
TensorBoard and the terminal.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ijepa_ds.durable import append_lines
from ijepa_ds.errors import UserError

FILE = "health.jsonl"
_FALL = ("probe/target_std", "probe/target_effective_rank")


@dataclass(frozen=True)
class Limits:
    """Thresholds of the alarms; docs/visualize.md explains them."""

    window: int = 10  # previous points that a point is compared with
    rank_share: float = 0.5  # effective rank below this share of the window's maximum
    least_rank: float = 2.0  # or below this
    std_share: float = 0.4  # standard deviation of target features below this share of the window's maximum
    least_std: float = 0.05  # or below this
    fall_share: float = 0.8  # standard deviation below this share of the highest of the run, while the rank is lower, too,
    fall_content: float = 0.6  # and the product of both below this share of what it was then
    fall_probes: int = 2  # consecutive probes
    loss_factor: float = 2.0  # loss above this multiple of the window's median
    loss_deviations: float = 8.0  # and above the median by this many median absolute deviations
    loss_points: int = 4  # smallest window for this check
    dead_share: float = 0.02  # standard deviation of predictions below this share of the targets'
    dead_cosine: float = 0.1  # or their cosine to the targets below this
    dead_probes: int = 3  # consecutive probes, after the warm-up
    wait_share: float = 0.3  # share of the time spent waiting for images
    wait_points: int = 3  # consecutive points
    rest: int = 5  # points without the condition before the same alarm is raised again


@dataclass(frozen=True)
class Alarm:
    """One line of `health.jsonl`.

    Attributes:
        step: Completed optimizer steps.
        name: partial_collapse, slow_collapse, loss_jump, dead_predictor or stalled_loader.
        message: Observation and advice.
        values: All scalars of the point, by tag.
    """

    step: int
    name: str
    message: str
    values: dict[str, float] = field(default_factory=dict)


class Health:
    """The health checks of one run."""

    def __init__(self, run_dir: Path, warmup_steps: int = 0, limits: Limits | None = None) -> None:
        """Prepare the checks.

        Args:
            run_dir: Alarms are appended to `health.jsonl` in this directory.
            warmup_steps: Steps without the check for a dead predictor.
            limits: Thresholds.
        """
        self._file, self._warmup, self.limits = run_dir / FILE, warmup_steps, limits or Limits()
        self._past: dict[str, deque[float]] = {}
        self._silent: dict[str, int] = {}  # points without the condition until an alarm may be raised again
        self._in_a_row: dict[str, int] = {}
        self._highest: tuple[float, float] | None = None  # deviation and rank at the probe with the highest deviation

    def remember(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Take the highest deviation from points of before a resume; a value that was not finite is None."""
        for values in points:
            std, rank = (values.get(tag) for tag in _FALL)
            if std is not None and rank is not None:
                self._raise_highest(std, rank)

    def _raise_highest(self, std: float, rank: float) -> None:
        if self._highest is None or std > self._highest[0]:
            self._highest = (std, rank)

    def point(self, step: int, values: Mapping[str, float]) -> list[Alarm]:
        """Check the scalars of one point, write new alarms and return them.

        Args:
            step: Completed optimizer steps.
            values: Scalars by TensorBoard tag; a check is skipped if its tags are missing.
        """
        seen = [
            *self._collapse(values),
            *self._fall(values),
            *self._jump(values),
            *self._dead(step, values),
            *self._stalled(values),
        ]
        alarms = []
        for name, message in seen:
            if message and not self._silent.get(name):
                alarms.append(Alarm(step, name, message, _finite(values)))
            self._silent[name] = self.limits.rest if message else max(0, self._silent.get(name, 0) - 1)
        for tag, value in values.items():
            if not math.isfinite(value):
                continue
            self._past.setdefault(tag, deque(maxlen=self.limits.window)).append(value)
        if alarms:
            self._write(alarms)
        return alarms

    def _write(self, alarms: list[Alarm]) -> None:
        append_lines(self._file, [json.dumps(asdict(alarm) | {"time": round(time.time(), 3)}) for alarm in alarms])

    def _collapse(self, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        limits, reasons = self.limits, []
        rules = (
            ("probe/target_effective_rank", "effective rank", limits.rank_share, limits.least_rank),
            ("probe/target_std", "standard deviation", limits.std_share, limits.least_std),
        )
        if not any(tag in values for tag, *_ in rules):
            return
        for tag, words, share, least in rules:
            if tag not in values:
                continue
            value, highest = values[tag], max(self._past.get(tag, ()), default=0.0)
            if value < least:
                reasons.append(f"the {words} of the target's features is {value:.3g}, below {least:g}")
            elif value < share * highest:
                reasons.append(f"the {words} of the target's features fell from {highest:.3g} to {value:.3g}")
        advice = "Lower optimization.lr, raise optimization.ema, give data.mean and data.std of the images; compare k-NN scores"
        yield "partial_collapse", f"{'; '.join(reasons)}: the representation is collapsing. {advice}" if reasons else ""

    def _fall(self, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        """A fall over many probes, which no window shows. Runs that learn lose deviation, too, but gain rank meanwhile."""
        if any(tag not in values for tag in _FALL):
            return
        std, rank = (values[tag] for tag in _FALL)
        self._raise_highest(std, rank)
        assert self._highest is not None
        high, rank_then = self._highest
        lower = std < self.limits.fall_share * high and rank < rank_then
        falls = lower and std * rank < self.limits.fall_content * high * rank_then
        text = (
            f"the standard deviation of the target's features has fallen from {high:.3g} to {std:.3g} during the run, and "
            f"their effective rank from {rank_then:.3g} to {rank:.3g}: features lose content, while positions alone predict "
            "well. Give data.mean and data.std of your images, or lower optimization.lr; compare k-NN scores with those of "
            "the untrained encoder"
        )
        yield "slow_collapse", text if self._count("fall", falls) >= self.limits.fall_probes else ""

    def _jump(self, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        past = self._past.get("loss", ())
        if "loss" not in values or len(past) < self.limits.loss_points:
            return
        loss, median = values["loss"], statistics.median(past)
        deviation = statistics.median(abs(value - median) for value in past)
        high = max(self.limits.loss_factor * median, median + self.limits.loss_deviations * deviation)
        advice = "See gradient/norm; lower optimization.lr, set optimization.clip_grad, or go back to a checkpoint"
        yield "loss_jump", f"the loss jumped from about {median:.4g} to {loss:.4g}. {advice}" if loss > high else ""

    def _dead(self, step: int, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        tags = ("probe/prediction_std", "probe/target_std", "probe/cosine_prediction_target")
        if step <= self._warmup or any(tag not in values for tag in tags):
            return
        prediction, target, cosine = (values[tag] for tag in tags)
        dead = prediction < self.limits.dead_share * target or cosine < self.limits.dead_cosine
        text = (
            f"predictions deviate by {prediction:.3g}, the targets by {target:.3g}, their cosine is {cosine:.2f}, at "
            f"{self.limits.dead_probes} probes in a row: the predictor's output is constant. Check optimization.lr and "
            "model.predictor; common causes are a predictor that is much too narrow and a learning rate that is far too high"
        )
        yield "dead_predictor", text if self._count("dead", dead) >= self.limits.dead_probes else ""

    def _stalled(self, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        tag = "slowest/data_wait" if "slowest/data_wait" in values else "time/data_wait"
        if tag not in values or tag not in self._past:  # the first point includes the loader's start
            return
        text = (
            f"{100 * values[tag]:.0f} % of the time is spent waiting for images{_of_rank(values)}, at "
            f"{self.limits.wait_points} points in a row: "
            "raise data.threads or data.prefetch, store smaller images, or check the disk and its other users"
        )
        count = self._count("wait", values[tag] > self.limits.wait_share)
        yield "stalled_loader", text if count >= self.limits.wait_points else ""

    def _count(self, name: str, now: bool) -> int:
        self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if now else 0
        return self._in_a_row[name]


def _of_rank(values: Mapping[str, float]) -> str:
    rank = values.get("slowest/data_wait_rank")
    return "" if rank is None else f" on rank {rank:.0f}"


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Return the finite values, rounded to six digits, because JSON has no NaN."""
    return {tag: float(f"{value:.6g}") for tag, value in values.items() if abs(value) < float("inf")}


def read_alarms(run_dir: Path) -> list[Alarm]:
    """Read the alarms of a run, oldest first; empty if there is no file.

    Raises:
        ValueError: A line is damaged, except the last, which a crash may have truncated.
    """
    path = run_dir / FILE
    if not path.is_file():
        return []
    lines, alarms = path.read_text(encoding="utf-8").splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            alarms.append(Alarm(row["step"], row["name"], row["message"], row["values"]))
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is damaged ({error})") from error
    return alarms
