"""Bytes of a rank by part. What DeepSpeed 0.19 allocates was read in its source and measured (docs/plan.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ijepa_ds.config.sizes import Size
from ijepa_ds.model.work import Work
from ijepa_ds.plan.spread import Spread

_STAGE_0_BUCKET = 500_000_000  # elements of the all-reduce's copy of the gradients (deepspeed/runtime/engine.py)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, on its device unless said otherwise.

    Attributes:
        weights: context encoder and predictor, as the forward pass uses them.
        target: the target encoder's weights.
        masters: float32 master weights beside them.
        moments: AdamW's two.
        ema: the float32 moving average.
        gradients: the most there are at once, before they are reduced.
        gradients_kept: what is left of them for the optimizer.
        buffers: gradient buckets, and weights that stage 3 has gathered.
        activations: the most that one micro-batch holds, from the forward pass into the backward pass.
        activations_checkpointed: the same with activation checkpointing.
        activations_whole: the same without.
        loader: images decoded ahead (without the decoder's own scratch memory).
        host: bytes that offloading moved off the device, into main memory or files.
        peak: the most that is held at once on the device.
    """

    weights: float
    target: float
    masters: float
    moments: float
    ema: float
    gradients: float
    gradients_kept: float
    buffers: float
    activations: float
    activations_checkpointed: float
    activations_whole: float
    loader: float
    host: float
    peak: float

    def parts(self) -> dict[str, float]:
        """Bytes by part, for tables."""
        names = ("weights", "target", "masters", "moments", "ema", "gradients", "buffers", "activations", "loader")
        return {name: getattr(self, name) for name in names}

    @property
    def states(self) -> float:
        """What stays between steps: weights, target, masters, moments, moving average."""
        return self.weights + self.target + self.masters + self.moments + self.ema


def memory_of(work: Work, spread: Spread, prefetch: int = 0) -> Memory:
    """Bytes of one rank; `prefetch` batches of images are decoded ahead."""
    every, encoder, b = work.count(), work.count("encoder"), work.weight_bytes
    share = 1.0 if spread.stage == 0 else 1.0 / spread.world
    held = 1.0 / spread.world if spread.stage == 3 else 1.0
    copies = spread.stage > 0 or b == 2  # stage 0 in float32: the weights are their own masters
    masters, moments = 4.0 * every * share * copies, 8.0 * every * share
    ema, weights, target, host = 4.0 * encoder * share, b * every * held, b * encoder * held, 0.0
    if b == 4 and spread.stage < 3 and not spread.offload:
        ema = 0.0  # float32: the target's own weights are the average
    if spread.offload:  # the EMA lives beside the masters
        host, masters, moments, ema = masters + moments + ema, 0.0, 0.0, 0.0
    if spread.offload_weights:
        host, weights, target = host + weights + target, 0.0, 0.0
    if spread.hpz > 1:
        weights += b * every / spread.hpz
    gradients = _gradients(work, spread)
    buffers = _buffers(work, spread)
    whole = activations_of(replace(work, checkpointing="none"), spread.micro_batch)
    checkpointed = activations_of(replace(work, checkpointing="full"), spread.micro_batch)
    activations = activations_of(work, spread.micro_batch)
    memory = Memory(
        weights=weights,
        target=target,
        masters=masters,
        moments=moments,
        ema=ema,
        gradients=gradients,
        gradients_kept=gradients if spread.stage != 1 else gradients / spread.world,
        buffers=buffers,
        activations=activations,
        activations_checkpointed=checkpointed,
        activations_whole=whole,
        loader=float(prefetch * spread.micro_batch * work.patches * 3 * work.patch_size**2),
        host=host,
        peak=0.0,
    )
    return replace(memory, peak=memory.states + memory.loader + _peak_beside_states(work, spread, memory))


def _gradients(work: Work, spread: Spread) -> float:
    every, b = work.count(), work.weight_bytes
    accumulated = 4 if spread.accumulation > 1 and b == 2 and spread.stage > 0 else b
    if spread.stage <= 1:
        # with bfloat16 and accumulation, stage 1 keeps a float32 sum of all gradients beside them (BF16_Optimizer)
        return every * (b + (4 if accumulated > b else 0))
    return every * accumulated / spread.world


def _buffers(work: Work, spread: Spread) -> float:
    every, b = work.count(), work.weight_bytes
    if spread.stage == 0:
        return b * float(min(every, _STAGE_0_BUCKET))
    buckets = b * float(spread.bucket) * (1 + spread.double_bucket) if spread.contiguous else 0.0
    return buckets + (b * gathered(work, spread) if spread.stage == 3 else 0.0)


def gathered(work: Work, spread: Spread) -> float:
    """Elements of whole weights that stage 3 holds at most.

    What it keeps for later, two modules at work, and what is gathered ahead once more: DeepSpeed receives that in one
    buffer and copies every weight out of it.
    """
    if spread.world == 1:
        return 0.0
    total = work.count() + work.count("encoder")
    largest = max(_modules(work).values())
    target, trained = kept(work, spread)
    return min(total, target + trained + 2 * largest) + min(spread.prefetch, total)


def kept(work: Work, spread: Spread) -> tuple[int, int]:
    """Elements that stage 3 does not release after their forward pass: of the target encoder, and of what is trained.

    It keeps a module when the next use is within `reuse` elements. It finds the next use of every module where the
    backward pass enters the whole model, also the target's, which has no backward pass; and on its way there it counts
    the encoder and the predictor twice, once whole and once by their modules (blocks are leaf modules here).
    """
    sizes = _modules(work)
    encoder = [numel for name, numel in sizes.items() if name.startswith("encoder.")]
    predictor = [numel for name, numel in sizes.items() if name.startswith("predictor.")]

    def near(modules: list[int], beyond: int) -> int:
        total, distance = 0, beyond
        for numel in reversed(modules):
            if distance >= spread.reuse:
                break
            total, distance = total + numel, distance + numel
        return total

    trained = near(predictor, 0) + near(encoder, 2 * sum(predictor))
    return near(encoder, 2 * sum(encoder) + 2 * sum(predictor)), trained


def _modules(work: Work) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for parameter in work.parameters:
        key = f"{parameter.part}.{parameter.module}"
        sizes[key] = sizes.get(key, 0) + parameter.numel
    return sizes


def _peak_beside_states(work: Work, spread: Spread, memory: Memory) -> float:
    """The largest of three moments: the backward pass begins, it has ended, the optimizer runs."""
    begins = memory.activations + (memory.buffers if spread.stage > 0 else 0.0)
    ended = memory.gradients + memory.buffers
    # bfloat16 gradients become float32 ones for AdamW: all at stage 0, else the rank's share
    step = memory.gradients_kept + memory.masters
    if spread.stage == 3:  # the rank's share of the gradients is allocated once, for good
        b, bucket = work.weight_bytes, min(spread.bucket, work.count())
        begins += memory.gradients
        # a full bucket is sorted by ranks and divided: two more copies of it
        held = kept(work, spread)[0] if spread.world > 1 else 0
        ended = memory.gradients + b * float(spread.bucket * spread.contiguous + held + 2 * bucket)
    return max(begins, ended, step)


def activations_of(work: Work, micro_batch: int) -> float:
    """The most that the activations of a micro-batch take: all that is saved, and the workspace of one block.

    Without checkpointing that is the start of the backward pass. With it, every block saves less, and one block at a time
    is computed again.
    """
    b, t, size, predictor = work.weight_bytes, work.tokens, work.size, work.predictor
    contexts = micro_batch * work.contexts * (t.most_context + size.registers)  # tokens in the context encoder
    queries = micro_batch * work.contexts * work.targets * t.most_target
    sequences = micro_batch * work.contexts * work.targets * (t.most_context + t.most_target)  # tokens in the predictor
    saved = [
        size.depth * contexts * saved_by_block(size, b, work.checkpointing),
        predictor.depth * sequences * saved_by_block(predictor, b, work.checkpointing),
        contexts * (4 + b) * size.width,  # into the final norm; into the predictor
        sequences * 4 * predictor.width + queries * b * predictor.width,  # into the predictor's norm and its last layer
        queries * size.width * (4 + (b if b < 4 else 0)),  # the prediction, for the loss
        micro_batch * work.targets * t.most_target * size.width * 4,  # what is to be predicted
        micro_batch * work.patches * 3 * work.patch_size**2 * b,  # the pixels, for the patch embedding
        8 * (contexts + queries + sequences),  # patch numbers
    ]
    spaces = [_workspace(kind, n, b, work.checkpointing) for kind, n in ((predictor, sequences), (size, contexts))]
    backward = max(sum(saved) + spaces[0], sum(saved) - saved[1] + spaces[1])
    return max(backward, _target_pass(size, micro_batch * (work.patches + size.registers), b))


def saved_by_block(size: Size, b: int, checkpointing: str = "none") -> int:
    """Bytes a token that one block saves for its backward pass, with fused attention.

    The float32 stream into both norms (8 D); both norms' results, q, k, v and attention's result (6 b D); before and
    after GELU (2 b H); mean and deviation of the norms, and the kernel's log-sum-exp a head. Options change that; of
    checkpointing, `full` keeps a block's input, `selective` also the results of its products.
    """
    d, h, heads = size.width, size.mlp_hidden, size.heads
    if checkpointing == "full":
        return 4 * d
    if checkpointing == "selective":
        return 4 * d + 6 * b * d + b * h * (2 if size.swiglu else 1) + 4 * heads
    saved = 8 * d + 6 * b * d + 2 * b * h + 16 + 4 * heads
    if size.parallel:  # one norm instead of two; without a bias in front of it, the MLP's is a sum of its own
        saved -= 4 * d + b * d + 8 - (0 if size.qkv_bias else b * h)
    if size.swiglu:  # gate, its SiLU, value, product
        saved += 2 * b * h
    if size.qk_norm:  # float32 copies of bfloat16 q and k into the norms; their results; statistics a head
        saved += (2 * b + (8 if b < 4 else 0)) * d + 16 * heads
    if size.rope:  # turned q and k
        saved += 2 * b * d
    if size.layer_scale:  # the branches' results
        saved += b * d * (1 if size.parallel else 2)
    return saved


def _workspace(size: Size, tokens: float, b: int, checkpointing: str) -> float:
    """Bytes that a block's backward pass needs beside what is saved.

    The gradients of the stream and of one hidden layer; with checkpointing also what is computed again, which is all that
    a block saves without it, but for what selective checkpointing has kept.
    """
    again = 0
    if checkpointing != "none":
        again = saved_by_block(size, b) - (saved_by_block(size, b, checkpointing) - 4 * size.width)
    return tokens * (4 * size.width + b * size.mlp_hidden + again)


def _target_pass(size: Size, tokens: float, b: int) -> float:
    """Bytes of the target encoder's pass: nothing is saved; the widest moment is inside an MLP."""
    return tokens * (4 * size.width + 2 * b * size.mlp_hidden)
