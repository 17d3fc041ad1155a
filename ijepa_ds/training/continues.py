"""Whether a run may continue a checkpoint: it must go on with the same samples."""

from __future__ import annotations

from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.config import DataConfig
from ijepa_ds.counter import ORDER_VERSION, OTHER_STAND_INS
from ijepa_ds.data.image_order import UNKNOWN, identity_of, plan_identity
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.errors import UserError


def check_continues(reader: CheckpointReader, cfg: DataConfig, folder: ImageIndex) -> None:
    """Refuse a checkpoint of another plan (`image_order.plan_identity`): samples would repeat or be skipped.

    Checkpoints of before `counter.ORDER_VERSION` record none; they were drawn under version 1.

    Raises:
        UserError: names what differs, then and now.
    """
    saved, now, place = identity_of(reader.manifest), plan_identity(cfg, folder), reader.folder
    if saved["version"] in OTHER_STAND_INS and not folder.bad and not reader.manifest.get("bad_samples"):
        saved = saved | {"version": ORDER_VERSION}
    if saved["version"] != now["version"]:
        raise UserError(
            f"{place} was saved under order version {saved['version']}, this revision of ijepa_ds has order version "
            f"{ORDER_VERSION}: it would draw other samples, crops and masks for the remaining steps. Continue with the "
            "revision that saved it (`versions` in its manifest.json), or start another run.dir from its weights "
            "(model.init_from)"
        )
    if saved["checksum"] != now["checksum"]:
        raise UserError(
            f"data.source has other images than when {place} was saved ({saved['images']} then, {now['images']} now, checksum "
            f"{saved['checksum']} then, {now['checksum']} now): restore them, or start again in another run.dir"
        )
    if saved["mix"] not in (UNKNOWN, now["mix"]):
        raise UserError(
            f"data.source mixes its sources in other shares than when {place} was saved (images and samples in a thousand of "
            f"each source: {saved['mix']} then, {now['mix']} now): restore the weights, or start again in another run.dir"
        )
    if saved["order"] != now["order"]:
        older = ", continue with the version of ijepa_ds that saved it" if now["mix"] else ""  # shards of mixes changed
        raise UserError(
            f"data.order takes the images in another order than when {place} was saved ({_words(saved['order'])} then, "
            f"{_words(now['order'])} now): restore data.order, data.shuffle_window and the shards{older}, or start again in "
            "another run.dir"
        )


def _words(order: object) -> str:
    if not isinstance(order, dict):
        return str(order)
    return f"{order['shards']} shards with digest {order['sizes']}, window {order['window']}"
