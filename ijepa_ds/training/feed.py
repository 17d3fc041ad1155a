"""Images and masks of a step: functions of step and micro-batch, independent of the number of ranks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ijepa_ds.cluster.judge import STORAGE
from ijepa_ds.data.augment import network_input
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.training.resolution import Resolutions
from ijepa_ds.training.slowest import Stopwatch
from ijepa_ds.training.start import Run

Mark = Callable[[str], None]


class StepImages:
    """Reads micro-batches in order and normalises them for the network."""

    def __init__(self, run: Run, resolutions: Resolutions, mark: Mark) -> None:
        """Open the loader at the run's next step.

        Args:
            run: the run.
            resolutions: image size of every step.
            mark: called with "data_wait" when the pixels are there.
        """
        self._run, self._resolutions, self._mark = run, resolutions, mark
        self.stopwatch = Stopwatch()  # this rank's own times
        self.loader = ImageBatches(
            run.cfg.data,
            run.folder,
            seed=run.cfg.run.seed,
            batch_size=run.cfg.optimization.batch_size,
            micro_batch=run.plan.micro_batch,
            rank=run.rank,
            world_size=run.plan.world_size,
            accumulation=run.plan.accumulation,
            start_step=run.start,
            bad=run.bad.found,
            device=run.engine.device,
            on_storage_wait=lambda: run.watch.alive(STORAGE),
            on_late=lambda what: run.watch.doing(f"waiting for images: {what}"),
        )
        self.pixels: Tensor | None = None  # last micro-batch, uint8 [B, S, S, 3]

    def next(self, step: int, micro: int) -> Tensor:
        """The normalised images of a micro-batch, `[B, 3, S, S]`, on the training device.

        Args:
            step: 0-based.
            micro: 0-based micro-batch of the step. Calls follow the order of the steps.
        """
        run = self._run
        run.watch.begin(step)
        run.watch.doing("waiting for images")
        self.stopwatch.begin()
        pixels = next(self.loader)
        self.stopwatch.waited()
        self._mark("data_wait")
        self.pixels = self._resolutions.shrink(pixels, step)
        first = step * run.plan.batch_size + run.plan.position(run.rank, micro)  # global sample number
        return network_input(self.pixels, first, run.cfg.data, run.cfg.run.seed, run.engine.compute_dtype)

    def close(self) -> None:
        """Stop the loader's threads."""
        self.loader.close()


class StepMasks:
    """Draws the masks of every micro-batch."""

    def __init__(self, run: Run, resolutions: Resolutions, mark: Mark) -> None:
        """Keep the samplers.

        Args:
            run: the run.
            resolutions: the sampler of every step.
            mark: called with "masks" when they are drawn.
        """
        self._run, self._resolutions, self._mark = run, resolutions, mark

    def sample(self, step: int, micro: int) -> Masks:
        """Contexts `[B, C, Kc]` and targets `[B, M, Kt]` of a micro-batch, on the training device.

        Args:
            step: 0-based.
            micro: 0-based micro-batch of the step.
        """
        plan, sampler = self._run.plan, self._resolutions.sampler(step)
        masks = sampler.sample(step, plan.position(self._run.rank, micro), plan.micro_batch, self._run.engine.device)
        self._mark("masks")
        return masks
