"""Host time of a step: Python, PyTorch's dispatch and DeepSpeed's hooks, which run before a kernel is on the device.

Operations were counted in a step of the real engine (docs/plan.md, "Host"). Their costs come from one H100 machine where it
was measured, else from `ijepa-ds bench host` on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from ijepa_ds.model.work import Work
from ijepa_ds.plan.hardware import Device
from ijepa_ds.plan.spread import Spread
from ijepa_ds.plan.traffic import Message

# Operations of one block without views: forward, backward; eager, and what remains when the compiler has fused casts, norms,
# sums and GELU. Eager ones are counted by tests/plan/test_host.py; compiled: 5 + 4 fused kernels, 13 + 8 backward.
_EAGER, _COMPILED = (16, 28), (9, 21)
_OF_GRADIENT = 2  # copies of a gradient: into the bucket, and out of it
_JOINS = 2  # concatenations of the gradients of a block's two tensors (model.flat)
_REST = 150  # embedding, masks, loss, optimizer and EMA
KERNELS = 1.4  # that an operation launches on a GPU: some products and sums take two

# Seconds. H100: 280 ms compiled and 516 ms eager, 51 ms of them for 539 gradients.
OPERATION = 75e-6  # module call, dispatch, autograd and launches
GRADIENT = 95e-6  # DeepSpeed's hook at a gradient
CHECK, ATTENTION_PLAN = 10.6e-6, 1.5e-3  # of the first revision on a GPU: 85 ms in 8,000 kernels, 116 ms in 76 calls
# CPU: `ijepa-ds bench host`.
MODULE, TENSOR = 1.2e-3, 30e-6  # stage 3: fetch and release a module in one pass; the same for each of its tensors
COLLECTIVE = 110e-6  # DeepSpeed's bookkeeping for a collective
STAGE_0 = 57e-6  # stage 0, bfloat16: DeepSpeed's optimizer waits for the device and loops over tensors once a step


@dataclass(frozen=True)
class Code:
    """What a revision of this package does on the host beside the operations of the networks.

    Attributes:
        block_tensors: Tensors of a block; None: as in the current code.
        checks: Kernels that look for non-finite values in each gradient.
        plans_attention: cuDNN plans attention anew in every call.
    """

    block_tensors: int | None = None
    checks: int = 0
    plans_attention: bool = False


# Revisions that ran on a GPU, for the calibration (docs/plan.md).
REVISIONS = {
    "now": Code(),
    "h100-eager": Code(block_tensors=12, checks=15, plans_attention=True),
    "h100-compiled": Code(block_tensors=12),
}


@dataclass(frozen=True)
class Host:
    """Seconds of a rank's host in one step.

    Attributes:
        kernels: Kernels launched (a count).
        operations: Networks, optimizer and EMA.
        gradients: DeepSpeed's hooks at gradients.
        gathers: ZeRO-3's hooks at modules.
        collectives: Bookkeeping of collectives.
        removed: What only an older revision does.
    """

    kernels: int
    operations: float
    gradients: float
    gathers: float
    collectives: float
    removed: float

    @property
    def seconds(self) -> float:
        """All of them together."""
        return self.operations + self.gradients + self.gathers + self.collectives + self.removed


def host_of(work: Work, spread: Spread, device: Device, messages: list[Message], code: Code | None = None) -> Host:
    """Return the host time of a step.

    Args:
        work: Shapes of the run.
        spread: Distribution over devices.
        device: Its machine's speed.
        messages: Collectives of a step.
        code: Revision of this package; None: the current one.
    """
    code = code or Code()
    rounds, tensors = spread.accumulation, work.tensors(code.block_tensors)
    joins = 0 if code.block_tensors else _JOINS * work.blocks
    operations = rounds * (_operations(work) + joins + _OF_GRADIENT * tensors) + _REST
    attention_calls = rounds * (work.target_size.depth + work.blocks)
    if spread.stage:
        hooks = rounds * tensors * GRADIENT
    else:  # no hooks; after the last backward pass gradients are copied into buckets and back
        hooks = tensors * (GRADIENT + (STAGE_0 if work.weight_bytes == 2 else 0.0))
    gathers = 0.0
    if spread.stage == 3:  # every block is a leaf module; target, context encoder and predictor; forward, and backward
        passes = work.target_size.depth + 2 * work.blocks
        target = sum(map(work.runs_in_target, work.parameters))
        gathers = rounds * (passes * MODULE + (2 * tensors + target) * TENSOR)
    removed = rounds * tensors * code.checks * CHECK + code.plans_attention * attention_calls * ATTENTION_PLAN
    calls = sum(message.calls for message in messages)
    kernels = round(KERNELS * operations) + calls + rounds * tensors * code.checks
    seconds = (operations * OPERATION, hooks, gathers, calls * COLLECTIVE, removed)
    return Host(kernels, *(device.host * value for value in seconds))


def _operations(work: Work) -> int:
    """Return the operations of all blocks in the forward and backward pass of a micro-batch."""
    forward, backward = _COMPILED if work.compiled else _EAGER
    again = 0 if work.checkpointing == "none" else forward * work.blocks
    return forward * (work.target_size.depth + work.blocks) + backward * work.blocks + again
