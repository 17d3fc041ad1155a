"""The training loop."""

from __future__ import annotations

from ijepa_ds.cluster.stop import StopRequests
from ijepa_ds.training.around import Around
from ijepa_ds.training.start import Run


def train(run: Run, stop: StopRequests) -> None:
    """Train for the remaining steps of the schedule.

    Args:
        run: from `start.prepare`.
        stop: signals received; read once a step.

    Raises:
        Stopped: a signal arrived on some rank; the state after the current step is saved.
        TrainingError: the loss or the gradients were not finite too often.
        CheckpointError: the last state could not be saved.
    """
    if run.is_finished():
        return
    engine, schedule = run.engine, run.schedule
    with Around(run, stop) as around:
        around.before_first_step()
        batches, sampler = around.batches, around.sampler
        for step in range(run.start, schedule.total_steps):
            for micro in range(run.plan.accumulation):
                images = batches.next(step, micro)  # [B, 3, H, W]
                masks = sampler.sample(step, micro)  # contexts [B, C, Kc], targets [B, M, Kt]
                with around.forward(step, micro):
                    result = engine.forward(images, masks, around.mark, schedule.context_share(step))
                engine.backward(result.loss)
                around.after_backward(result)
            around.before_update()
            applied = engine.step(schedule.at(step), around.mark)  # the optimizer, then the EMA
            around.after_step(step, result, masks, applied)
