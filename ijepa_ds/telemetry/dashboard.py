"""The layout of TensorBoard's "Custom Scalars" page: the scalars that show the health of a run."""

from __future__ import annotations

# category -> chart -> tags (regular expressions), as SummaryWriter.add_custom_scalars takes it
LAYOUT: dict[str, dict[str, list[object]]] = {
    "Does it learn": {
        "loss, and its terms before their weights": ["Multiline", ["^loss$", "^loss/"]],
        "cosine of predicted and true": ["Multiline", ["^probe/cosine_prediction_target$"]],
        "k-NN and other scores (eval.every, ijepa-ds eval)": ["Multiline", ["^eval/", "NN$", "knn"]],
    },
    "Does it collapse": {
        "effective rank": ["Multiline", ["^probe/.*effective_rank$"]],
        "standard deviation of features": ["Multiline", ["^probe/(target|prediction)_std$"]],
        "attention entropy (1: every patch alike)": ["Multiline", ["^probe/attention_entropy"]],
    },
    "Is it stable": {
        "gradient norm": ["Multiline", ["^gradient/norm$"]],
        "distance of the EMA from the encoder": ["Multiline", ["^probe/ema_distance$"]],
        "skipped steps": ["Multiline", ["^optimizer/skipped_steps$"]],
        "alarms so far": ["Multiline", ["^alarms/count$"]],
    },
    "Is it fast": {
        "images a second": ["Multiline", ["^speed/images_per_second$"]],
        "MFU (of the data sheet), share of the measured product": ["Multiline", ["^speed/mfu$", "^speed/matmul_share$"]],
        "share of the time waiting for images": ["Multiline", ["^(time|slowest)/data_wait$"]],
        "slowest rank: seconds of a step": ["Multiline", ["^(speed|slowest)/seconds_per_step$"]],
        "memory, GiB": ["Multiline", ["^memory/", "^slowest/memory_gib$"]],
    },
}
