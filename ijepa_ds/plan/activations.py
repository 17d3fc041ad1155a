"""Bytes of activations: what a forward pass saves for the backward pass, and the workspace of one block."""

from __future__ import annotations

from ijepa_ds.config.sizes import Size
from ijepa_ds.model.work import Work


def activations_of(work: Work, micro_batch: int) -> float:
    """Return the peak bytes of the activations of a micro-batch: everything saved, and the workspace of one block.

    The peak is at the start of the backward pass. With checkpointing every block saves less, and the workspace includes
    the activations of one recomputed block.
    """
    b, r, t, size, predictor = work.weight_bytes, work.residual_bytes, work.tokens, work.size, work.predictor
    contexts = micro_batch * work.contexts * (t.most_context + size.registers)  # tokens in the context encoder
    queries = micro_batch * work.contexts * work.targets * t.most_target
    sequences = micro_batch * work.contexts * work.targets * (t.most_context + t.most_target)  # tokens in the predictor
    predicted, outputs = sequences if work.predicts_context else queries, work.prediction_width
    saved = [
        size.depth * contexts * saved_by_block(size, b, work.checkpointing, r),
        predictor.depth * sequences * saved_by_block(predictor, b, work.checkpointing, r),
        contexts * (4 + b) * size.width,  # into the final norm; into the predictor
        sequences * 4 * predictor.width + predicted * b * predictor.width,  # into the predictor's norm and its last layer
        predicted * outputs * (4 + (b if b < 4 else 0)),  # the prediction, for the loss
        micro_batch * work.targets * t.most_target * outputs * 4,  # the prediction targets
        micro_batch * work.contexts * t.most_context * outputs * 4 * work.predicts_context,  # those of the context
        micro_batch * work.patches * work.size.channels * work.patch_size**2 * b,  # the pixels, for the patch embedding
        8 * (contexts + queries + sequences),  # patch indices
    ]
    workspace = [_workspace(kind, n, b, work.checkpointing, r) for kind, n in ((predictor, sequences), (size, contexts))]
    backward = max(sum(saved) + workspace[0], sum(saved) - saved[1] + workspace[1])
    hidden = 4.0 * work.hidden_targets * size.width * micro_batch * work.patches  # outputs of blocks that are targets
    target = _target_pass(size, micro_batch * (work.patches + size.registers), b, r)
    return max(backward, target + hidden, 3 * hidden)  # as they are, side by side, normalised


def saved_by_block(size: Size, b: int, checkpointing: str = "none", r: int = 4) -> int:
    """Return the bytes per token that one block saves for its backward pass, with fused attention.

    A plain block of width D and MLP width H with b bytes per value saves: the float32 residual stream into both norms
    (8 D); the outputs of both norms, q, k, v and the attention output (6 b D); the input and output of GELU (2 b H); mean
    and deviation of the norms (16); the attention kernel's log-sum-exp per head. With checkpointing, `full` saves a
    block's input, `selective` also the results of its matrix products. A compiled block keeps the stream once at most, so a
    bfloat16 stream (r = 2) saves 2 D.

    Args:
        size: Shape of the block.
        b: Bytes of a value in front of a matrix product, 2 or 4.
        checkpointing: none, selective or full.
        r: Bytes of a value of the residual stream.
    """
    d, h, heads = size.width, size.mlp_hidden, size.heads
    if checkpointing == "full":
        return r * d
    if checkpointing == "selective":
        return r * d + 6 * b * d + b * h * (2 if size.swiglu else 1) + 4 * heads
    saved = (4 + r) * d + 6 * b * d + 2 * b * h + 16 + 4 * heads
    if size.parallel:  # one norm instead of two; without a qkv bias, adding the MLP's bias saves its own result
        saved -= 4 * d + b * d + 8 - (0 if size.qkv_bias else b * h)
    if size.swiglu:  # gate, its SiLU, value, product
        saved += 2 * b * h
    if size.qk_norm:  # float32 copies of bfloat16 q and k into the norms; their results; statistics a head
        saved += (2 * b + (8 if b < 4 else 0)) * d + 16 * heads
    if size.rope:  # rotated q and k
        saved += 2 * b * d
    if size.layer_scale:  # the outputs of the branches
        saved += b * d * (1 if size.parallel else 2)
    return saved


def _workspace(size: Size, tokens: float, b: int, checkpointing: str, r: int) -> float:
    """Return the bytes that a block's backward pass needs beside the saved activations.

    These are the gradients of the residual stream and of one hidden layer. With checkpointing the recomputed activations
    are added: everything that a block saves without checkpointing, except what selective checkpointing has saved.
    """
    recomputed = 0
    if checkpointing != "none":
        recomputed = saved_by_block(size, b, r=r) - (saved_by_block(size, b, checkpointing, r) - r * size.width)
    return tokens * (r * size.width + b * size.mlp_hidden + recomputed)


def _target_pass(size: Size, tokens: float, b: int, r: int) -> float:
    """Return the peak bytes of the target encoder's forward pass, which saves nothing; the peak is inside an MLP."""
    return tokens * (r * size.width + 2 * b * size.mlp_hidden)
