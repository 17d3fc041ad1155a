"""Progress bar and TensorBoard points; the only place of the loop that waits for the device."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import torch
from torch import Tensor

from ijepa_ds import config
from ijepa_ds.config import Config
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.config.sizes import size_of
from ijepa_ds.data.values import Values
from ijepa_ds.distributed.world import mean_over_ranks
from ijepa_ds.errors import TrainingError, UserError
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model.attention import EntropyProbe, during
from ijepa_ds.model.flops import training_flops
from ijepa_ds.model.ijepa import Output
from ijepa_ds.model.mfu import data_sheet_peak, measured_peak
from ijepa_ds.plotting.masks import draw_batch
from ijepa_ds.telemetry import metrics_file
from ijepa_ds.telemetry.dashboard import LAYOUT
from ijepa_ds.telemetry.event_log import Log
from ijepa_ds.telemetry.health import Health
from ijepa_ds.telemetry.metrics import Clock, effective_rank, feature_std, peak_memory_gib
from ijepa_ds.terminal import Bar
from ijepa_ds.training.engine import Engine
from ijepa_ds.training.slowest import Figures

logger = logging.getLogger(__name__)
STALL = 0.05  # warn if a larger share of the time is spent waiting for data


class Reporter:
    """Collects figures on every rank; rank 0 writes them."""

    def __init__(
        self, cfg: Config, engine: Engine, schedule: Schedule, start: int, rank: int, window: Sequence[float] = ()
    ) -> None:
        """Open the log; TensorBoard hides points after step `start` of an earlier attempt.

        `window`: from the checkpoint that the run continues from (`before_checkpoint`).
        """
        self.cfg, self.engine, self.schedule, self.rank = cfg, engine, schedule, rank
        self.clock = Clock(engine.device)
        self.last_loss = math.nan
        self._log = Log(Path(cfg.run.dir), rank, purge_step=start + 1)
        self._log.text("config", config.to_text(cfg))
        self._log.layout(LAYOUT)
        self._health = Health(Path(cfg.run.dir), schedule.warmup_steps) if rank == 0 else None
        if self._health and start and (Path(cfg.run.dir) / metrics_file.NAME).is_file():
            with suppress(OSError, UserError):  # a damaged line: `report` names it
                self._health.remember(metrics_file.read_lines(Path(cfg.run.dir)))
        # rank 0's device: FLOPs a second of a product, and of the data sheet if it is known
        self._product_rate = measured_peak(engine.device, engine.compute_dtype) if rank == 0 else 0.0
        self._peak = data_sheet_peak(engine.device, engine.compute_dtype)
        self._alarms = 0
        self._entropy: EntropyProbe | None = None
        # of micro-batches with a finite loss, since the last point: sum of their losses, their number, sum of each term
        self._loss = torch.zeros(2 + len(cfg.objective.terms), device=engine.device)
        if window and rank == 0:
            self._loss[: len(window)] += torch.tensor(window, device=engine.device)
        self._steps, self._since = 0, time.perf_counter()
        self._skipped, self._warned, self._settled = 0, False, False
        self._bar = Bar("pretraining", schedule.total_steps, "steps", done=start, show=rank == 0, always=True)

    def add(self, output: Output) -> None:
        """Add the loss of a micro-batch and its terms if it is finite; they stay on the device."""
        loss = output.loss.detach()
        sums = torch.stack([loss, torch.ones_like(loss)])
        if output.terms is not None:
            sums = torch.cat([sums, output.terms])
        self._loss += torch.where(loss.isfinite(), sums, torch.zeros_like(sums))

    def watching(self, step: int, micro: int) -> AbstractContextManager[object]:
        """Context for the forward pass of a micro-batch: records the target encoder's attention if a probe is due."""
        if self.rank != 0 or micro != 0 or not self._probes_after(step):
            return nullcontext()
        self._entropy = EntropyProbe(size_of(self.cfg.model).depth)
        return during(self.engine.module.target_encoder, self._entropy)

    def _probes_after(self, step: int) -> bool:
        every = self.cfg.run.probe_every
        return bool(every) and ((step + 1) % every == 0 or step == 0)

    def is_point(self, step: int) -> bool:
        """Whether scalars are logged after a step (0-based)."""
        return (step + 1) % self.cfg.run.log_every == 0 or step + 1 == self.schedule.total_steps

    def after_step(
        self, step: int, output: Output, masks: Masks, pixels: Tensor, applied: bool, bad: int, figures: Figures
    ) -> None:
        """Write what is due after a step.

        Args:
            step: 0-based.
            output: of the last micro-batch.
            masks: of the last micro-batch.
            pixels: of the last micro-batch, `[B, S, S, C]` as the loader returns them.
            applied: whether the optimizer applied the step.
            bad: number of unreadable images.
            figures: maxima over ranks since the last point.

        Raises:
            TrainingError: no loss since the last point was finite, and the step was applied all the same.
        """
        run, done = self.cfg.run, step + 1
        self._skipped += not applied
        self._steps += 1
        if self.is_point(step):
            self._write_scalars(step, masks, bad, figures, applied)
        if self._probes_after(step):
            self._write_probes(done, output)
        if run.picture_every and self.rank == 0 and step % run.picture_every == 0:
            picture = draw_batch(
                self._pictured(pixels[:8]), Masks(masks.context[:8], masks.targets[:8]), self.cfg.model.patch_size
            )
            self._log.image(done, "images/masks", torch.from_numpy(picture))
        self.clock.mark("report")
        self._bar.update()

    def _pictured(self, pixels: Tensor) -> Tensor:
        values = Values.of(self.cfg.data)
        return pixels if values.plain else torch.from_numpy(values.pictured(pixels.cpu().numpy()))

    def _write_scalars(self, step: int, masks: Masks, bad: int, figures: Figures, applied: bool) -> None:
        total_loss, count, *terms = mean_over_ranks(self._loss.clone()).tolist()
        loss = total_loss / count if count else math.nan
        now = time.perf_counter()
        spent, images = now - self._since, self._steps * self.cfg.optimization.batch_size
        parts = self.clock.seconds()
        total = sum(parts.values()) or 1.0
        self._point(
            step + 1,
            {
                "loss": loss,
                "schedule/lr": self.schedule.lr(step),
                "schedule/weight_decay": self.schedule.weight_decay(step),
                "schedule/ema_momentum": self.schedule.momentum(step),
                "gradient/norm": self.engine.gradient_norm(),
                "speed/images_per_second": images / spent,
                "speed/seconds_per_step": spent / self._steps,
                "tokens/context": masks.context.shape[-1],
                "tokens/target": masks.targets.shape[-1],
                "optimizer/skipped_steps": self._skipped,
                "data/bad_samples": bad,
                "memory/peak_gib": peak_memory_gib(self.engine.device),
                "slowest/data_wait": figures.waiting.value / spent,
                "slowest/data_wait_rank": figures.waiting.rank,
                "slowest/seconds_per_step": figures.working.value / self._steps,
                "slowest/seconds_per_step_rank": figures.working.rank,
                "slowest/memory_gib": figures.memory.value,
                "slowest/memory_rank": figures.memory.rank,
                "alarms/count": self._alarms,
            }
            | {f"loss/{name}": total / count for name, total in zip(self.cfg.objective.terms, terms, strict=True) if count}
            | self._utilisation(images / spent, masks, step)
            | {f"time/{name}": seconds / total for name, seconds in parts.items()},
        )
        self._bar.note = f"loss {loss:.4f}, {images / spent:,.0f} images/s"
        if not math.isfinite(loss) and applied:  # else `run.max_nonfinite` decides
            raise TrainingError(f"the loss is {loss} at step {step + 1}: lower optimization.lr, or set optimization.clip_grad")
        self._warn_of_stalls(figures.waiting.value / spent, figures.waiting.rank)
        self.last_loss = loss if math.isfinite(loss) else self.last_loss
        self._loss = torch.zeros_like(self._loss)
        self._steps, self._since = 0, now

    def _utilisation(self, rate: float, masks: Masks, step: int) -> dict[str, float]:
        """Shares of the measured product and of the data sheet at `rate` images a second, with the last step's masks."""
        if self.rank != 0:
            return {}  # only rank 0 writes
        flops = training_flops(config.at_step(self.cfg, step), masks.context.shape[-1], masks.targets.shape[-1])
        reached = rate * flops / torch.distributed.get_world_size()
        shares = {"speed/matmul_share": reached / self._product_rate}
        return shares | ({"speed/mfu": reached / self._peak} if self._peak else {})

    def _warn_of_stalls(self, share: float, rank: int) -> None:
        if share > STALL and self.rank == 0 and not self._warned and self._settled:
            logger.warning(
                "%.0f %% of the time rank %d waits for images, and the others for it: "
                "raise data.threads (%d now) or data.prefetch (%d now)",
                100 * share,
                rank,
                self.cfg.data.threads,
                self.cfg.data.prefetch,
            )
            self._warned = True
        self._settled = True  # the first point includes the start of the loader

    def before_checkpoint(self) -> list[float]:
        """Flush the points, so that they reach the saved step; every rank calls it.

        Returns:
            Sum and number of the finite losses since the last point, and sums of their terms, over all ranks: the next
            point of a resumed run has the same means as without the restart.
        """
        self._log.flush()
        window = self._loss.clone()
        if torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(window)
        return window.tolist()

    def _write_probes(self, done: int, output: Output) -> None:
        distance = self.engine.ema.distance().to(self.engine.device)
        apart, size = mean_over_ranks(distance).tolist()  # all ranks take part
        if self.rank != 0:
            return
        prediction, target = output.prediction, output.target
        if not bool(torch.isfinite(target).all() & torch.isfinite(prediction).all()):
            return  # the next point ends the run
        similarity = torch.nn.functional.cosine_similarity(prediction.float(), target[:, None].expand(prediction.shape), dim=-1)
        entropies = self._entropy.values() if self._entropy else []
        self._entropy = None
        self._point(
            done,
            {
                "probe/target_std": float(feature_std(target)),
                "probe/prediction_std": float(feature_std(prediction)),
                "probe/target_effective_rank": float(effective_rank(target)),
                "probe/prediction_effective_rank": float(effective_rank(prediction)),
                "probe/cosine_prediction_target": float(similarity.mean()),
                "probe/ema_distance": math.sqrt(apart / max(size, 1e-30)),
            }
            | {f"probe/attention_entropy/block_{number:02d}": value for number, value in enumerate(entropies)}
            | ({"probe/attention_entropy": sum(entropies) / len(entropies)} if entropies else {}),
        )

    def _point(self, done: int, values: dict[str, float]) -> None:
        """Log scalars and the alarms that they trigger."""
        self._log.scalars(done, values)
        for alarm in self._health.point(done, values) if self._health else ():
            self._alarms += 1
            logger.warning("ALARM %s at step %d: %s", alarm.name, alarm.step, alarm.message)
            self._log.text(f"alarms/{alarm.name}", alarm.message, done)

    def evaluated(self, done: int, values: dict[str, float]) -> None:
        """Log the scores of an evaluation after `done` steps."""
        self._point(done, values)

    def close(self) -> None:
        """Write pending points; also called after a failure."""
        self._bar.close()
        self._log.close()
