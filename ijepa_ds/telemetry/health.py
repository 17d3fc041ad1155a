"""Alarms of a run: a collapse, a loss that jumps, a predictor that is dead, a loader that starves the devices.

`Health.point` is given what is logged anyway, so looking costs nothing. Every alarm is raised once, and again only after what
it saw has been over for some points. It goes to `health.jsonl` in the run directory; the reporter brings it to TensorBoard and
the terminal.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ijepa_ds.durable import append_lines

FILE = "health.jsonl"


@dataclass(frozen=True)
class Limits:
    """When an alarm is raised; docs/visualize.md has the reasons."""

    window: int = 10  # points that the present one is compared with
    rank_share: float = 0.5  # effective rank below this share of the window's highest
    least_rank: float = 2.0  # or below this
    std_share: float = 0.4  # standard deviation of the target's features below this share of the window's highest
    least_std: float = 0.05  # or below this
    loss_factor: float = 2.0  # loss above this many medians of the window
    loss_deviations: float = 8.0  # and above the median by so many median absolute deviations
    loss_points: int = 4  # that the window must have
    dead_share: float = 0.02  # deviation of predictions below this share of the targets'
    dead_cosine: float = 0.1  # or their cosine to the targets below this
    dead_probes: int = 3  # in a row, after the warm-up
    wait_share: float = 0.3  # of the time spent waiting for images
    wait_points: int = 3  # in a row
    rest: int = 5  # points without a reason before the same alarm is raised again


@dataclass(frozen=True)
class Alarm:
    """One line of `health.jsonl`.

    Attributes:
        step: optimizer steps done.
        name: partial_collapse, loss_jump, dead_predictor or stalled_loader.
        message: what was seen and what to do, for people.
        values: the numbers it was seen in.
    """

    step: int
    name: str
    message: str
    values: dict[str, float] = field(default_factory=dict)


class Health:
    """Watches the points of one run."""

    def __init__(self, run_dir: Path, warmup_steps: int = 0, limits: Limits | None = None) -> None:
        """Alarms are appended to `run_dir/health.jsonl`; the predictor may be idle for `warmup_steps`."""
        self._file, self._warmup, self.limits = run_dir / FILE, warmup_steps, limits or Limits()
        self._past: dict[str, deque[float]] = {}
        self._silent: dict[str, int] = {}  # how many more points without a reason an alarm stays silent
        self._in_a_row: dict[str, int] = {}

    def point(self, step: int, values: Mapping[str, float]) -> list[Alarm]:
        """Look at what is logged at `step`; new alarms are written and returned.

        Args:
            step: optimizer steps done.
            values: by TensorBoard's tags; what a rule needs and is not there is not judged.
        """
        seen = [*self._collapse(values), *self._jump(values), *self._dead(step, values), *self._stalled(values)]
        alarms = []
        for name, message in seen:
            if message and not self._silent.get(name):
                alarms.append(Alarm(step, name, message, _finite(values)))
            self._silent[name] = self.limits.rest if message else max(0, self._silent.get(name, 0) - 1)
        for tag, value in values.items():
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
            f"{self.limits.dead_probes} probes in a row: the predictor says the same everywhere. Look at optimization.lr and "
            "model.predictor; a predictor that is much too narrow or a learning rate far too high does this"
        )
        yield "dead_predictor", text if self._count("dead", dead) >= self.limits.dead_probes else ""

    def _stalled(self, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        tag = "time/data_wait"
        if tag not in values or tag not in self._past:  # the first point holds the start of the loader
            return
        text = (
            f"{100 * values[tag]:.0f} % of the time is spent waiting for images, at {self.limits.wait_points} points in a row: "
            "raise data.threads or data.prefetch, store smaller images, or look at the disk and at what else runs there"
        )
        count = self._count("wait", values[tag] > self.limits.wait_share)
        yield "stalled_loader", text if count >= self.limits.wait_points else ""

    def _count(self, name: str, now: bool) -> int:
        self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if now else 0
        return self._in_a_row[name]


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """What JSON can say of the values, rounded."""
    return {tag: float(f"{value:.6g}") for tag, value in values.items() if abs(value) < float("inf")}


def read_alarms(run_dir: Path) -> list[Alarm]:
    """The alarms of a run, oldest first; none where there is no file.

    Raises:
        ValueError: a line (but the last, which a crash may have cut) is damaged.
    """
    path = run_dir / FILE
    if not path.is_file():
        return []
    lines, alarms = path.read_text(encoding="utf-8").splitlines(), []
    for number, line in enumerate(lines, 1):
        try:
            told = json.loads(line)
            alarms.append(Alarm(told["step"], told["name"], told["message"], told["values"]))
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is damaged ({error})") from error
    return alarms
