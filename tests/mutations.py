"""The mutations of `python -m tests.mutate`: one changed line each, and the tests that must notice it."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """One change of the code."""

    file: str
    old: str  # occurs once in the file
    new: str
    tests: str  # arguments of pytest

    def __str__(self) -> str:
        """One line for lists."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old} -> {new or '(removed)'}"


def _loop(world: int, stage: int, precision: str = "float32") -> str:
    return f"tests/dist/test_zero.py::test_the_loop_equals_plain_pytorch[{world}-{stage}-{precision}]"


_LOOP, _LOOP_OF_TWO = _loop(1, 3), _loop(2, 3)
_FLAT = "tests/model/test_flat.py"
_PARITY = "tests/model/test_parity.py"
_OTHERS = "tests/test_files_of_others.py"
_SCHEDULES = "tests/config/test_schedules.py tests/model/test_parity.py"
_VIT = "tests/model/test_vit.py tests/model/test_parity.py -m 'not slow'"
_FILES = "tests/checkpoint -k 'not recorded' -m 'not slow'"
_PLAN = "tests/plan tests/model/test_mfu.py -k 'not allocator' -m 'not slow'"
_WATCH = "tests/cluster/test_judge.py"
_WATCH_OF_MANY = "tests/cluster/test_watch.py -k looks"
_MASKS = "tests/masks"
_EVALS = "tests/evals/test_evals.py"
_WEIGHTS = "tests/weights/test_write.py tests/weights/test_read.py tests/weights/test_options.py -m 'not slow'"
_HEALTH = "tests/telemetry"
_CACHE = "tests/evals/test_cache.py"
_JOINT = "tests/data/test_joint.py"
_STREAMS = "tests/test_streams.py"
_GOLDEN = "tests/test_golden.py"
_CHANNELS = "tests/data/test_channels.py"
_AROUND = "tests/training/test_around.py"
_SAVER = "tests/checkpoint/test_saver.py"
_LOGS = "tests/cluster/test_rank_log.py"
_CONTINUES = "tests/training/test_continues.py"
_BAD = "tests/data/test_bad.py"
_RANGES = "tests/checkpoint/test_ranges.py"
_FOLDERS = "tests/checkpoint/test_folders.py"
_DAMAGE = "tests/dist/test_damage.py"
_HOOKS = "tests/zero/test_hooks.py"
_LINEAR = "tests/zero/test_linear.py -k 'not 512'"
_RECIPES = "tests/evals/test_recipes.py"
_HEADS = "tests/evals/test_recipe_heads.py"
_SWEEP = "tests/evals/test_sweep.py"
_SUITE = "tests/evals/test_suite.py"
_ROTARY = "tests/model/test_rotary.py"
_TARGET = "tests/model/test_target.py"
_OBJECTIVE = "tests/model/test_objective.py"
_OBJECTIVE_LOOP = "tests/dist/test_objective.py -k 'mean-tanh or context or spread'"
_METRICS = "tests/telemetry/test_metrics.py"
_CASES = "tests/cases"
_STORAGE = "tests/data/test_storage.py"
_SAVED = "tests/checkpoint/test_storage.py"
_KINDS = "tests/test_storage.py"
_PACKAGE = "tests/test_packaging.py -m 'not slow'"
_SLURM = "tests/launch/test_slurm.py"
_OTHERS = "tests/test_files_of_others.py"
_RELAX = "tests/masks/test_published.py -k exactly"

MUTATIONS = [
    # Decoders: which files Pillow decodes, and the limits.
    Mutation("ijepa_ds/data/image_header.py", "components == 4 and adobe is None", "False", f"{_CASES}/test_images.py"),
    Mutation("ijepa_ds/data/image_header.py", 'name in (b"acTL", b"fcTL") or', "", f"{_CASES}/test_images.py"),
    Mutation("ijepa_ds/data/image_header.py", "compression == 0 and", "", f"{_CASES}/test_images.py"),
    Mutation(
        "ijepa_ds/data/pillow.py", "    check_pixels(header.width, header.height, max_pixels)\n", "", f"{_CASES}/test_memory.py"
    ),
    Mutation("ijepa_ds/data/dali.py", "        self._failed.add(index)\n", "", f"{_CASES}/test_images.py"),
    Mutation(
        "ijepa_ds/data/samples.py",
        "        check_pixels(int(",
        "        0 and check_pixels(int(",
        f"{_CASES}/test_images.py -k limit",
    ),
    Mutation("ijepa_ds/data/jpeg_check.py", "not restart and int(", "int(", "tests/data/test_jpeg_check.py"),
    Mutation("ijepa_ds/data/transforms.py", "if max(target) <= _LONGEST * shorter:", "if True:", f"{_CASES}/test_memory.py"),
    Mutation("ijepa_ds/evals/readable.py", "sorted(left_out)", "[]", f"{_CASES}/test_memory.py"),
    # Faults of storage; exit codes; scans; live evaluation.
    Mutation("ijepa_ds/errors.py", "error.errno not in _OF_FILE and ", "", _KINDS),
    Mutation(
        "ijepa_ds/errors.py", "return STOPPED if is_fault(error) else USER_ERROR", "return USER_ERROR", "tests/test_storage.py"
    ),
    Mutation("ijepa_ds/storage.py", "if left <= 0:", "if left <= 1e9:", _KINDS),
    Mutation("ijepa_ds/data/reading.py", "self._tars.pop(container, None)\n", "pass\n", f"{_STORAGE} -k descriptor"),
    Mutation("ijepa_ds/data/row_groups.py", "pa.OSFile(os.fsencode(path))", "path", "tests/data/test_parquet.py -k url"),
    Mutation("ijepa_ds/evals/dense/labels.py", "Image.open(file, formats=_TRUTH)", "Image.open(file)", f"{_OTHERS} -k opening"),
    Mutation("ijepa_ds/doctor/rows.py", 'slots if found["gpus"] else 1', "slots", "tests/doctor/test_doctor.py -k containers"),
    Mutation("ijepa_ds/data/row_groups.py", "if content is None:", "if False:", "tests/data/test_parquet.py -k usable"),
    Mutation(
        "ijepa_ds/data/shards.py", "not whole or read != whole", "not whole", "tests/data/test_parquet_shards.py -k goes_on"
    ),
    Mutation(
        "ijepa_ds/data/samples.py",
        "window * mean > cfg.parquet_cache",
        "False",
        "tests/data/test_parquet.py -k fit_into_memory",
    ),
    Mutation("ijepa_ds/data/reading.py", "\\0{place.group}", "", "tests/data/test_parquet.py -k other_images"),
    Mutation("ijepa_ds/data/parquet_columns.py", "number < 0 or", "False or", "tests/data/test_parquet.py -k is_no_class"),
    Mutation(
        "ijepa_ds/data/row_groups.py",
        "self._held <= self._most or dropped is rows",
        "True",
        "tests/data/test_parquet.py -k below_the_limit",
    ),
    Mutation(
        "ijepa_ds/data/reading.py",
        "is_fault(error) or self._is_lost(container)",
        "is_fault(error)",
        f"{_STORAGE} -k 'lost or van'",
    ),
    Mutation("ijepa_ds/data/walk.py", "if is_fault(error):", "if False:", f"{_STORAGE} -k kind"),
    Mutation("ijepa_ds/data/sources.py", "if walker.problems:", "if False:", f"{_STORAGE} -k listed"),
    Mutation("ijepa_ds/data/scan.py", " and _all_good(made)", "", "tests/data/test_scan.py -k repaired"),
    Mutation("ijepa_ds/cluster/judge.py", " and not awaited", "", _WATCH),
    Mutation(
        "ijepa_ds/checkpoint/writer.py",
        "        aside.rename(final)\n    except",
        "    except",
        "tests/checkpoint/test_storage.py",
    ),
    Mutation("ijepa_ds/checkpoint/folder.py", "    if is_fault(error):", "    if False:", "tests/checkpoint/test_storage.py"),
    Mutation(
        "ijepa_ds/training/around.py",
        "self.saver.finish(lambda: watch.alive(WRITE))  #",
        "pass  #",
        _AROUND,
    ),
    Mutation("ijepa_ds/training/slowest.py", "unit) * _RANKS + rank", "unit) * _RANKS", "tests/training/test_slowest.py"),
    Mutation("ijepa_ds/training/streamed.py", "if block == 0:", "if block == 1:", "tests/training/test_streamed.py"),
    # Sources: tars, classes, lists.
    Mutation("ijepa_ds/data/tar_format.py", "if part.strip(b", "if False and part.strip(b", f"{_CASES}/test_tars.py"),
    Mutation("ijepa_ds/data/tar_format.py", "if left >= 2 * BLOCK and (", "if left >= 0 and (", f"{_CASES}/test_tars.py"),
    Mutation("ijepa_ds/data/tar_format.py", "or filled)", "or True)", f"{_CASES}/test_tars.py"),
    Mutation("ijepa_ds/data/tar_format.py", 'flag == b"S" or any(', "any(", f"{_CASES}/test_tars.py -k sparse"),
    Mutation(
        "ijepa_ds/data/tar_tree.py",
        "(name, resolved, above | {real})",
        "(name, resolved, above)",
        f"{_CASES}/test_tars.py -k links",
    ),
    Mutation(
        "ijepa_ds/data/classes.py", "level is not None and len(folders)", "False and len(folders)", f"{_CASES}/test_classes.py"
    ),
    Mutation("ijepa_ds/data/classes.py", "range(len(parts) - 1, 0, -1)", "range(1, len(parts))", f"{_CASES}/test_classes.py"),
    Mutation("ijepa_ds/data/list_text.py", 'content.removeprefix(b"', 'content.removesuffix(b"', f"{_CASES}/test_lists.py"),
    Mutation("ijepa_ds/data/repeats.py", "sorted_labels[at] != ", "None is ", f"{_CASES}/test_lists.py"),
    Mutation("ijepa_ds/data/repeats.py", "os.path.normpath(os.path.join(folder, name))", "name", f"{_CASES}/test_lists.py"),
    Mutation("ijepa_ds/data/tar_names.py", "0 < different", "1 < different", f"{_CASES}/test_tars.py -k long_name"),
    Mutation("ijepa_ds/data/dali.py", " or self._strays.found(index, content)", "", f"{_CASES}/test_images.py -k words"),
    Mutation("ijepa_ds/checkpoint/run_lock.py", "owner and owner != _owner()", "False", "tests/checkpoint/test_storage.py"),
    Mutation("ijepa_ds/data/lists.py", 'len(columns) > 1 and "label"', 'False and "label"', f"{_CASES}/test_lists.py"),
    Mutation("ijepa_ds/evals/presets.py", "if found != preset.num_classes", "if found > 10**6", f"{_CASES}/test_classes.py"),
    # The loop and what it passes on.
    Mutation("ijepa_ds/training/loop.py", "engine.step(schedule.at(step), ", "engine.step(schedule.at(step + 1), ", _LOOP),
    Mutation("ijepa_ds/training/loop.py", "sampler.sample(step, micro)", "sampler.sample(step, 0)", _LOOP),
    Mutation("ijepa_ds/training/engine.py", "        if applied:\n", "        if True:\n", _LOOP),
    Mutation("ijepa_ds/training/engine.py", "self.ema.update(settings.momentum)", "self.ema.update(0.99)", _LOOP),
    Mutation("ijepa_ds/training/engine.py", "betas=o.betas", "betas=(0.9, 0.999)", _LOOP),
    Mutation("ijepa_ds/training/engine.py", "eps=o.eps", "eps=1e-8", _LOOP),
    Mutation(
        "ijepa_ds/training/engine.py",
        'group["weight_decay"] = weight_decay if group["decay"] else 0.0',
        'group["weight_decay"] = weight_decay',
        _LOOP,
    ),
    Mutation("ijepa_ds/model/flat.py", "len(shape) > 1 and not", "len(shape) > 2 and not", _LOOP),
    Mutation("ijepa_ds/model/flat.py", "Part(name, start, parameter.shape)", "Part(name, 0, parameter.shape)", _FLAT),
    Mutation("ijepa_ds/model/flat.py", "forgets = forget_weights and", "forgets = False and", _FLAT + " -k 'kept and None'"),
    Mutation("ijepa_ds/model/flat.py", "_Slices.apply(flat, sizes)", "flat.split(sizes)", _FLAT + " -k 'kept and aot'"),
    Mutation("ijepa_ds/model/flat.py", "owner.__dict__[field] = None", "pass", _FLAT + " -k 'bits or outlive'"),
    Mutation("ijepa_ds/model/flat.py", "tensor.storage_offset() - flat.storage_offset()", "0", _FLAT + " -k 'kept and None'"),
    Mutation("ijepa_ds/zero/layout.py", "offset = piece.offset + begin - piece.start", "offset = piece.offset", _LOOP_OF_TWO),
    Mutation("ijepa_ds/zero/layout.py", "Piece(part.name, begin - part.start,", "Piece(part.name, 0,", _LOOP_OF_TWO),
    Mutation("ijepa_ds/training/engine.py", "(settings.lr, settings.weight_decay)", "(settings.lr, 0.0)", _LOOP),
    Mutation(
        "ijepa_ds/training/engine.py", "found_inf = skip.float()", "found_inf = torch.zeros_like(skip).float()", _loop(1, 0)
    ),
    Mutation("ijepa_ds/training/engine.py", "return not bool(skip)", "return True", _loop(1, 0)),
    Mutation("ijepa_ds/training/engine.py", "        self._fill(cfg.run.seed, start)", "        self._fill(0, start)", _LOOP),
    Mutation("ijepa_ds/training/feed.py", "plan.batch_size + run.plan.position(run.rank, micro)", "plan.batch_size", _LOOP),
    Mutation("ijepa_ds/training/feed.py", "step * run.plan.batch_size + run", "run", _LOOP),
    Mutation("ijepa_ds/training/feed.py", "sampler.sample(step, plan.position", "sampler.sample(0, plan.position", _LOOP),
    Mutation("ijepa_ds/training/feed.py", "plan.position(self._run.rank, micro)", "plan.position(self._run.rank, 0)", _LOOP),
    Mutation("ijepa_ds/training/feed.py", "seed=run.cfg.run.seed,", "seed=0,", _LOOP),
    Mutation("ijepa_ds/training/feed.py", "run.cfg.data, run.cfg.run.seed,", "run.cfg.data, 0,", _LOOP),
    Mutation(
        "ijepa_ds/config/batch.py", "(micro * self.world_size + rank)", "(rank * self.accumulation + micro)", _LOOP_OF_TWO
    ),
    Mutation("ijepa_ds/config/deepspeed_json.py", '"gradient_clipping": clip_grad,', '"gradient_clipping": 0.0,', _LOOP),
    Mutation("ijepa_ds/training/resolution.py", "cfg.grid, cfg.run.seed,", "cfg.grid, 0,", _LOOP),
    Mutation(
        "ijepa_ds/training/reporter.py",
        "self._steps * self.cfg.optimization.batch_size",
        "self._steps * (self.cfg.optimization.batch_size // torch.distributed.get_world_size())",
        _LOOP_OF_TWO,
    ),
    Mutation(
        "ijepa_ds/training/reporter.py",
        '"schedule/lr": self.schedule.lr(step)',
        '"schedule/lr": self.schedule.lr(step + 1)',
        _LOOP,
    ),
    Mutation(
        "ijepa_ds/training/reporter.py", "rate * flops / torch.distributed.get_world_size()", "rate * flops", _LOOP_OF_TWO
    ),
    Mutation("ijepa_ds/training/reporter.py", "self._skipped += not applied", "self._skipped += applied", _LOOP),
    Mutation(
        "ijepa_ds/training/skipped.py",
        "self._in_a_row = 0\n            return",
        "return",
        "tests/dist/test_faults.py -k finite",
    ),
    Mutation(
        "ijepa_ds/zero/norm.py",
        "torch._foreach_norm([g.detach() for g in kept], 2,",
        "torch._foreach_norm([g.detach() for g in kept], 1,",
        _LOOP,
    ),
    # Crops, flips, augmentations, order, start values.
    Mutation(
        "ijepa_ds/data/crops.py",
        "np.asarray(widths, dtype=np.float64), np.asarray(heights, dtype=np.float64)",
        "np.asarray(heights, dtype=np.float64), np.asarray(widths, dtype=np.float64)",
        _JOINT,
    ),
    Mutation(
        "ijepa_ds/data/crops.py",
        "np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))",
        "np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))",
        _JOINT,
    ),
    Mutation("ijepa_ds/data/crops.py", "np.floor(drawn[:, -1] *", "np.floor(drawn[:, -2] *", _JOINT),
    Mutation(
        "ijepa_ds/data/crops.py", "drawn[:, -2] * (height - crop_height + 1)", "drawn[:, -2] * (height - crop_height)", _JOINT
    ),
    Mutation("ijepa_ds/data/crops.py", "_TRIES = 10", "_TRIES = 4", _JOINT),
    Mutation("ijepa_ds/data/crops.py", "[:, 0] < 0.5", "[:, 0] < 0.512", _JOINT),
    Mutation("ijepa_ds/data/crops.py", "drawn[:, _TRIES : 2 * _TRIES])", "drawn[:, :_TRIES])", _STREAMS),
    Mutation("ijepa_ds/data/crops.py", "fits.argmax(axis=1)", "fits.shape[1] - 1 - fits[:, ::-1].argmax(axis=1)", _GOLDEN),
    Mutation("ijepa_ds/data/crops.py", "np.rint(width / ratio[0])", "np.rint(width / ratio[1])", _GOLDEN),
    Mutation("ijepa_ds/data/augment.py", "chance[:, _BLUR] < cfg.blur", "chance[:, _GRAYSCALE] < cfg.blur", _STREAMS),
    Mutation("ijepa_ds/data/augment.py", "drawn[:, _FACTORS], chance", "drawn[:, 1:2].expand(-1, 4), chance", _STREAMS),
    Mutation("ijepa_ds/data/augment.py", "chance[:, _ORDER], cfg", "chance[:, _ORDER] * 0, cfg", _STREAMS),
    Mutation("ijepa_ds/data/augment.py", "(high - low) * drawn[:, _SIGMA]", "(high - low) * drawn[:, _BLUR]", _STREAMS),
    Mutation("ijepa_ds/data/augment.py", "drawn.clamp(max=_BELOW_ONE)", "drawn", "tests/data/test_augment.py"),
    Mutation("ijepa_ds/data/augment.py", "math.ceil(3 * largest)", "math.ceil(1 * largest)", _GOLDEN),
    Mutation("ijepa_ds/counter.py", "STREAM_AUGMENT = 8", "STREAM_AUGMENT = 1", _STREAMS),
    Mutation("ijepa_ds/counter.py", "STREAM_DROP = 7", "STREAM_DROP = 9", _GOLDEN),
    Mutation(
        "ijepa_ds/counter.py", "key = _mix_int(key + (number + 1) * _GOLDEN)", "key = _mix_int(key + number * _GOLDEN)", _GOLDEN
    ),
    Mutation("ijepa_ds/data/order.py", "_ROUNDS = 8", "_ROUNDS = 6", _GOLDEN),
    Mutation("ijepa_ds/data/order.py", "fold(seed, int(epoch))", "fold(seed, int(epoch) + 1)", _GOLDEN),
    Mutation("ijepa_ds/data/order.py", "fold(seed, _SOURCE, source)", "fold(seed, _SOURCE)", _GOLDEN),
    Mutation("ijepa_ds/masks/published.py", "_ATTEMPTS = 20", "_ATTEMPTS = 19", _GOLDEN),
    Mutation("ijepa_ds/masks/unbiased.py", "_DEFAULT_SHARE = 0.95", "_DEFAULT_SHARE = 0.9", _GOLDEN),
    Mutation("ijepa_ds/masks/blocks.py", "(draw * (side + 1 - np.array(size)))", "(draw * (side - np.array(size)))", _GOLDEN),
    Mutation("ijepa_ds/model/vit.py", "(key * 1_000_003 + char)", "(key * 1_000_033 + char)", _GOLDEN),
    Mutation(
        "ijepa_ds/model/blocks.py", "rate = size.drop_path * index / max(1, size.depth - 1)", "rate = size.drop_path", _GOLDEN
    ),
    Mutation("ijepa_ds/evals/lowshot.py", "np.random.default_rng(seed)", "np.random.default_rng(seed + 1)", _GOLDEN),
    Mutation(
        "ijepa_ds/training/eval_images.py",
        "np.random.default_rng(0).permutation(n)",
        "np.random.default_rng(1).permutation(n)",
        _GOLDEN,
    ),
    Mutation("ijepa_ds/training/continues.py", 'if saved["version"] != now', "if False and now", _CONTINUES),
    Mutation("ijepa_ds/training/continues.py", 'if saved["checksum"] != now', "if False and now", _CONTINUES),
    Mutation("ijepa_ds/training/continues.py", 'if saved["mix"] not in', "if False and [] not in", _CONTINUES),
    Mutation("ijepa_ds/training/continues.py", 'if saved["order"] != now', "if False and now", _CONTINUES),
    Mutation("ijepa_ds/data/image_order.py", '"sizes": digest}', '"sizes": ""}', "tests/data/test_shard_order.py"),
    Mutation("ijepa_ds/data/shard_order.py", "fold(seed, epoch)", "seed", "tests/data/test_shard_order.py"),
    Mutation("ijepa_ds/data/shard_order.py", "fold(key, _WINDOW, number)", "fold(key, _WINDOW)", _GOLDEN),
    Mutation(
        "ijepa_ds/data/mix.py", "weight * (part.weight or 0.0) / sum(inner)", "weight", "tests/data/test_sources.py -k mix"
    ),
    # Collectives of ZeRO-3.
    Mutation("ijepa_ds/zero/linear.py", "    buffer.div_(world)\n", "", _LINEAR),
    Mutation("ijepa_ds/zero/hooks.py", "            and not has_been_updated\n", "", _HOOKS),
    Mutation("ijepa_ds/zero/hooks.py", "            and shard.final_location != OffloadDeviceEnum.nvme\n", "", _HOOKS),
    Mutation("ijepa_ds/zero/hooks.py", "            and self.zero_param_process_group is None\n", "", _HOOKS),
    Mutation(
        "ijepa_ds/zero/hooks.py",
        "return itertools.chain(fixed[recurse], external.values()) if external else fixed[recurse]",
        "return fixed[recurse]",
        _HOOKS,
    ),
    Mutation("ijepa_ds/zero/linear.py", "-(-tensor.numel() // world) for", "tensor.numel() // world for", _LINEAR),
    Mutation("ijepa_ds/zero/linear.py", "if not isinstance(self.partitions, Tensor):", "if False:", _LINEAR),
    Mutation(
        "ijepa_ds/zero/linear.py",
        "            width *= param.ds_secondary_tensor_num_of_groups\n",
        "            pass\n",
        _LINEAR,
    ),
    # The average of the target encoder.
    Mutation("ijepa_ds/zero/ema.py", "masters, 1.0 - momentum)", "masters, momentum)", _LOOP),
    Mutation(
        "ijepa_ds/zero/ema.py",
        "torch._foreach_lerp_(self.average, masters, 1.0 - momentum)\n        self.publish()",
        "torch._foreach_lerp_(self.average, masters, 1.0 - momentum)",
        _LOOP,
    ),
    # Schedules.
    Mutation(
        "ijepa_ds/config/schedules.py",
        "self.start_lr + t / self.warmup_steps",
        "self.start_lr + (t - 1) / self.warmup_steps",
        _SCHEDULES,
    ),
    Mutation("ijepa_ds/config/schedules.py", "k = self._t(step) - 1", "k = self._t(step)", _SCHEDULES),
    Mutation("ijepa_ds/config/schedules.py", "return min(step + 1, self.horizon)", "return step + 1", _SCHEDULES),
    Mutation("ijepa_ds/config/schedules.py", "max(1, self.horizon - self.warmup_steps)", "max(1, self.horizon)", _SCHEDULES),
    Mutation(
        "ijepa_ds/config/schedules.py",
        "total, horizon = o.steps, int(o.ipe_scale * o.steps)",
        "total, horizon = o.steps, o.steps",
        _SCHEDULES,
    ),
    Mutation("ijepa_ds/config/schedules.py", "max(0, t - self.cooldown)", "max(0, t - self.cooldown - 1)", _SCHEDULES),
    # The method.
    Mutation("ijepa_ds/model/objective.py", "return F.smooth_l1_loss(", "return F.mse_loss(", _PARITY),
    Mutation("ijepa_ds/model/vit.py", "10000.0 **", "1000.0 **", _VIT),
    Mutation(
        "ijepa_ds/model/vit.py", "np.concatenate([columns, rows], axis=2)", "np.concatenate([rows, columns], axis=2)", _VIT
    ),
    Mutation(
        "ijepa_ds/model/vit.py",
        "(positions + 0.5) * learnt_grid / grid - 0.5",
        "positions * learnt_grid / grid",
        "tests/weights/test_read.py tests/weights/test_options.py tests/training/test_resolution.py",
    ),
    Mutation("ijepa_ds/model/vit.py", "query = self.mask_token + take(position", "query = take(position", _PARITY),
    Mutation(
        "ijepa_ds/model/vit.py",
        "x = x + take(position, context.flatten(1))",
        "x = x + 0 * take(position, context.flatten(1))",
        _PARITY,
    ),
    Mutation(
        "ijepa_ds/model/vit.py",
        "self.predictor_norm(x if with_context else x[:, kc:])",
        "x if with_context else x[:, kc:]",
        _PARITY,
    ),
    Mutation("ijepa_ds/model/vit.py", ".normal_(0.0, 0.02, ", ".normal_(0.0, 0.03, ", _VIT),
    Mutation("ijepa_ds/model/vit.py", "self.training and torch.is_grad_enabled()", "True", _VIT),
    Mutation("ijepa_ds/model/blocks.py", "eps: float = 1e-6", "eps: float = 1e-5", _VIT),
    # Checkpoints.
    Mutation("ijepa_ds/checkpoint/saver.py", "if not copied.is_finite():", "if False:", "tests/checkpoint/test_saver.py"),
    Mutation("ijepa_ds/checkpoint/folder.py", 'status.st_size != entry["bytes"]', "False", _FILES),
    Mutation("ijepa_ds/checkpoint/folder.py", "steps if last is None else sorted({*steps, last})", "steps", _FILES),
    Mutation("ijepa_ds/checkpoint/writer.py", "(keep_every and step % keep_every == 0)", "False", _FILES),
    Mutation("ijepa_ds/checkpoint/writer.py", " and step != best:", ":", _FILES),
    Mutation("ijepa_ds/checkpoint/writer.py", "if newest is not None and step > newest:", "if False:", _FILES),
    Mutation("ijepa_ds/checkpoint/run_lock.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB", _FILES),
    Mutation(
        "ijepa_ds/checkpoint/restore.py",
        'layout.set_moments(slot, moments["exp_avg"], moments["exp_avg_sq"], adam_step)',
        'layout.set_moments(slot, moments["exp_avg"], moments["exp_avg_sq"], 1)',
        "tests/dist/test_zero.py::test_resume_is_exact_to_the_last_bit[2]",
    ),
    Mutation(
        "ijepa_ds/checkpoint/restore.py",
        'buffer.copy_(reader.read("ema", "encoder." + piece.name, piece))',
        'buffer.copy_(reader.read("master", "encoder." + piece.name, piece))',
        "tests/dist/test_zero.py::test_resume_is_exact_to_the_last_bit[2]",
    ),
    Mutation("ijepa_ds/checkpoint/writer.py", "        _prove(path, tensors, starts)\n", "", _FOLDERS),
    Mutation(
        "ijepa_ds/checkpoint/writer.py",
        "for key, tensor in tensors.items():",
        "for key, tensor in list(tensors.items())[:1]:",
        _FOLDERS,
    ),
    Mutation(
        "ijepa_ds/checkpoint/restore.py",
        "rank, ranks = dist.get_rank(), dist.get_world_size()",
        "rank, ranks = 0, dist.get_world_size()",
        _DAMAGE,
    ),
    Mutation("ijepa_ds/checkpoint/folder.py", "files[first :: every or 1]", "files[first : first + 1]", _DAMAGE),
    Mutation("ijepa_ds/checkpoint/reader.py", "starts.get(key) != start", "False", _RANGES),
    Mutation("ijepa_ds/checkpoint/ranges.py", "first + files * each, each", "first + files * each, numel", _RANGES),
    Mutation("ijepa_ds/checkpoint/writer.py", "sizes=step not in whole", "sizes=True", _RANGES),
    Mutation("ijepa_ds/data/sources.py", "items[rank::ranks] or", "[] or", "tests/data/test_sources.py -k share"),
    # Weights.
    Mutation(
        "ijepa_ds/weights/names.py",
        '"attention.attention.query", "attention.attention.key"',
        '"attention.attention.key", "attention.attention.query"',
        _WEIGHTS,
    ),
    Mutation("ijepa_ds/weights/names.py", '"norm1": ("layernorm_before",)', '"norm1": ("layernorm_after",)', _WEIGHTS),
    Mutation("ijepa_ds/weights/timm_folder.py", "if key not in _ALLOWED:", "if False:", _OTHERS),
    Mutation("ijepa_ds/weights/timm_folder.py", "not is_model_in_modules(name, [_FAMILY])", "False", _OTHERS),
    Mutation("ijepa_ds/cluster/requeue.py", 'state != "RUNNING" and not timed_out', "False", _SLURM),
    Mutation("ijepa_ds/cluster/requeue.py", "if end.stop or end.signal:", "if False:", _SLURM),
    Mutation("ijepa_ds/cluster/requeue.py", "if count >= FRUITLESS:", "if False:", _SLURM),
    Mutation("ijepa_ds/cluster/environment.py", "min(cores, a_task)", "a_task", "tests/cluster/test_rank_log.py"),
    Mutation("ijepa_ds/versions.py", "if Path(top) != folder.parent.resolve():", "if False:", _PACKAGE),
    Mutation("ijepa_ds/weights/resize.py", "if grid != source.grid:", "if False:", _WEIGHTS),
    Mutation("ijepa_ds/weights/resize.py", "[patch_size] * 2", "[source.patch_size] * 2", _WEIGHTS),
    # Formulas of the planner.
    Mutation(
        "ijepa_ds/plan/memory.py",
        "4.0 * every * share * copies, 8.0 * every * share",
        "4.0 * every * share * copies, 4.0 * every * share",
        _PLAN,
    ),
    Mutation("ijepa_ds/plan/timeline.py", 'b * (every + work.count("encoder")) / spread.hpz', "b * every / spread.hpz", _PLAN),
    Mutation("ijepa_ds/plan/timeline.py", '"gradients, float32 sums", 4.0 * every, _ALL', '"gradients", 0.0, _ALL', _PLAN),
    Mutation("ijepa_ds/plan/traffic.py", "rounds - 1) if spread.hpz > 1", "0) if spread.hpz > 1", _PLAN),
    Mutation(
        "ijepa_ds/plan/memory.py",
        "host, masters, moments, ema = masters + moments + ema, 0.0, 0.0, 0.0",
        "host, masters, moments = masters + moments, 0.0, 0.0",
        _PLAN,
    ),
    Mutation(
        "ijepa_ds/plan/gathered.py", "encoder_to_backward = 2 * sum(predictor)", "encoder_to_backward = sum(predictor)", _PLAN
    ),
    Mutation("ijepa_ds/plan/traffic.py", '"all_reduce": 2, "all_gather": 1', '"all_reduce": 1, "all_gather": 1', _PLAN),
    Mutation("ijepa_ds/plan/traffic.py", "(rounds if spread.stage == 2 else 1)", "1", _PLAN),
    Mutation("ijepa_ds/plan/traffic.py", "2 * world * math.ceil(numel / (2 * world))", "numel", _PLAN),
    Mutation("ijepa_ds/plan/timing.py", "min(device.link_gbps, machine) if crosses", "device.link_gbps if crosses", _PLAN),
    Mutation("ijepa_ds/plan/timing.py", "return max(host.seconds, device_seconds) if", "return device_seconds if", _PLAN),
    Mutation("ijepa_ds/plan/host.py", "plans_attention * attention_calls", "plans_attention * 0", _PLAN),
    Mutation("ijepa_ds/plan/host.py", "hooks = rounds * tensors * GRADIENT", "hooks = 0.0", _PLAN),
    Mutation("ijepa_ds/plan/latency.py", "return START + 2 * min(ring, tree)", "return START + 2 * ring", _PLAN),
    Mutation("ijepa_ds/plan/search.py", 'if one.timing.limit != "host"] or fitting', "] or fitting", _PLAN),
    Mutation("ijepa_ds/plan/buckets.py", "len(ranks) if owners else 1", "1", _PLAN),
    Mutation("ijepa_ds/plan/timing.py", "exposed += max(0.0, spent - hideable)", "exposed += spent", _PLAN),
    Mutation(
        "ijepa_ds/model/flops.py", "size.depth * 4.0 * tokens * tokens * d", "size.depth * 2.0 * tokens * tokens * d", _PLAN
    ),
    Mutation("ijepa_ds/model/flops.py", "context=3 * (patch", "context=2 * (patch", _PLAN),
    # Starts: paths, numbers, ranks.
    Mutation("ijepa_ds/config/paths.py", "elif not environment.get(name):", "elif False:", "tests/config/test_paths.py"),
    Mutation("ijepa_ds/config/yaml_tree.py", "int(digits) != abs(value)", "False", "tests/config/test_paths.py"),
    Mutation("ijepa_ds/config/deepspeed_json.py", 'if value == "auto":', "if False:", "tests/config/test_deepspeed_json.py"),
    Mutation("ijepa_ds/distributed/environment.py", "rank >= world_size or", "", "tests/cluster/test_expected.py"),
    # Stand-ins of unreadable images.
    Mutation("ijepa_ds/training/continues.py", "and not folder.bad and", "and", _CONTINUES),
    Mutation("ijepa_ds/data/samples.py", "first + stand_ins(number, count, self._seed)", "[index + 1]", _BAD),
    Mutation("ijepa_ds/data/order.py", "drawn * num_samples).astype", "drawn * (num_samples - 1)).astype", _GOLDEN),
    Mutation("ijepa_ds/telemetry/metrics_file.py", "int(match[1]) >= first_step", "False", "tests/telemetry/test_curves.py"),
    Mutation("ijepa_ds/telemetry/event_log.py", "newest + 1 - time.time()", "0.0", "tests/telemetry/test_curves.py"),
    Mutation("ijepa_ds/weights/unwrap.py", "if word not in _ANYWHERE", "", "tests/weights/test_unwrap.py"),
    # The watch.
    Mutation("ijepa_ds/cluster/judge.py", "if len(behind) < len(peers) else []", "", _WATCH),
    Mutation("ijepa_ds/cluster/judge.py", "{READ, SCAN, STORAGE, WRITE, EVAL}", "{READ, SCAN, STORAGE, EVAL}", _WATCH),
    Mutation("ijepa_ds/checkpoint/saver.py", "if self._task.has_moved():", "if True:", _SAVER),
    Mutation(
        "ijepa_ds/cluster/rank_log.py",
        '    show(f"{screen.emphasised(head, terminal())}{text}")\n    note(f"{head}{text}")',
        '    note(f"{head}{text}")\n    show(f"{screen.emphasised(head, terminal())}{text}")',
        _LOGS,
    ),
    Mutation("ijepa_ds/cluster/rank_log.py", '    note(before.decode(errors="replace"))\n', "", _LOGS),
    Mutation("ijepa_ds/terminal/bar.py", "(now - then) if now - then >= 1", "now if now", "tests/terminal/test_bar.py"),
    Mutation("ijepa_ds/terminal/screen.py", "bars.console if bars and bars.shown else ", "", "tests/terminal/test_screen.py"),
    Mutation("ijepa_ds/cluster/judge.py", "now - peer.heard > SILENCE", "now - peer.heard > 2 * SILENCE", _WATCH),
    Mutation("ijepa_ds/cluster/judge.py", "if peer.place != place]", "]", _WATCH),
    Mutation("ijepa_ds/cluster/watch.py", "(ticks + self._rank) % self._period == 0", "True", _WATCH_OF_MANY),
    Mutation("ijepa_ds/cluster/peers.py", "whole = 2 if len(runs) == 1 else 3", "whole = 3", _WATCH),
    Mutation("ijepa_ds/cluster/judge.py", "0 < timeout < now - progress", "timeout < now - progress", _WATCH),
    Mutation("ijepa_ds/cluster/judge.py", "fewest = min(", "fewest = max(", _WATCH),
    Mutation("ijepa_ds/cluster/judge.py", "for peer in behind if not peer.report.communicates", "for peer in behind", _WATCH),
    Mutation(
        "ijepa_ds/cluster/judge.py",
        "[other for other in here if other not in suspects] or here",
        "here",
        _WATCH,
    ),
    Mutation(
        "ijepa_ds/cluster/supervise.py",
        "0 if step > self._reached else self._fruitless + 1",
        "self._fruitless + 1",
        "tests/cluster/test_supervise.py",
    ),
    # Masks.
    Mutation("ijepa_ds/masks/thin.py", "THIN = 0.25", "THIN = 0.0", "tests/masks/test_thin.py"),
    Mutation(
        "ijepa_ds/masks/published.py", "corners(draw[:, :m], target, grid - 1)", "corners(draw[:, :m], target, grid)", _MASKS
    ),
    Mutation("ijepa_ds/masks/published.py", "1.0, self.grid - 1),", "1.1, self.grid - 1),", _MASKS),
    Mutation("ijepa_ds/masks/unbiased.py", "math.log(aspect) for aspect in", "aspect for aspect in", _MASKS),
    Mutation("ijepa_ds/masks/sampler.py", "first = step * self.batch_size + first_position", "first = first_position", _MASKS),
    Mutation("ijepa_ds/masks/blocks.py", "area = int(patches)", "area = round(patches)", _MASKS),
    # Recipes of evaluations, and what they stand on.
    Mutation("ijepa_ds/model/blocks.py", "omega = 2 * np.pi * 100.0 **", "omega = 100.0 **", _ROTARY),
    Mutation("ijepa_ds/model/blocks.py", "omega = 2 * np.pi * 100.0 **", "omega = 2 * np.pi * 10000.0 **", _ROTARY),
    Mutation(
        "ijepa_ds/model/blocks.py",
        "angles = np.concatenate([columns, rows], axis=2)",
        "angles = np.concatenate([rows, columns], axis=2)",
        _ROTARY,
    ),
    Mutation("ijepa_ds/model/blocks.py", ".to(torch.float32) / (1.0 - drop.rate)", ".to(torch.float32)", _ROTARY),
    Mutation("ijepa_ds/model/blocks.py", "chance[:, index] >= drop.rate", "chance[:, 0] >= drop.rate", _ROTARY),
    Mutation("ijepa_ds/telemetry/metrics.py", "    x = _scaled(x - x.mean(dim=0))\n", "", _METRICS),
    Mutation("ijepa_ds/telemetry/metrics.py", ".std(dim=0).mean()", ".square().mean(dim=0).sqrt().mean()", _METRICS),
    Mutation(
        "ijepa_ds/masks/published.py",
        "cfg.num_targets - attempt // _ATTEMPTS]",
        "cfg.num_targets - (attempt + 1) // _ATTEMPTS]",
        _RELAX,
    ),
    Mutation("ijepa_ds/masks/published.py", "short = left <= cfg.min_keep", "short = left < cfg.min_keep", _RELAX),
    Mutation("ijepa_ds/model/objective.py", "x.shape[-1:])", "x.shape[-1:], eps=1e-6)", _TARGET),
    Mutation("ijepa_ds/model/objective.py", "x.mean(dim=-2)", "x.sum(dim=-2)", _OBJECTIVE),
    Mutation("ijepa_ds/model/objective.py", "x.flatten(-2)", "x.transpose(-2, -1).flatten(-2)", _OBJECTIVE),
    Mutation("ijepa_ds/model/objective.py", ".pow(-0.25)", ".pow(-0.5)", _OBJECTIVE),
    Mutation("ijepa_ds/model/objective.py", "clamp(min=1)", "clamp(min=0)", _OBJECTIVE),
    Mutation("ijepa_ds/model/ijepa.py", "weight * context_share * own", "weight * own", _OBJECTIVE),
    Mutation("ijepa_ds/model/vit.py", "found.append(x[:, self.size.registers :])", "found.append(x)", _OBJECTIVE_LOOP),
    Mutation("ijepa_ds/model/objective.py", "x * dist.get_world_size()", "x", _OBJECTIVE_LOOP),
    Mutation("ijepa_ds/model/objective.py", "/ (total - 1)", "/ total", _OBJECTIVE),
    Mutation("ijepa_ds/model/objective.py", "covariance.square().sum() - variance", "variance", _OBJECTIVE),
    Mutation("ijepa_ds/config/objective_checks.py", "plan.accumulation > 1", "False", _OBJECTIVE),
    Mutation("ijepa_ds/model/flops.py", "blocks(work.target_size", "blocks(work.size", _OBJECTIVE),
    Mutation("ijepa_ds/config/saving.py", " and not cfg.objective.context_warmup", "", _OBJECTIVE),
    Mutation("ijepa_ds/training/loop.py", "around.mark, schedule.context_share(step))", "around.mark)", _OBJECTIVE_LOOP),
    Mutation("ijepa_ds/evals/finetune.py", "layer_decay=recipe.layer_decay)", "layer_decay=1.0)", _RECIPES),
    Mutation("ijepa_ds/evals/finetune.py", "(model, recipe.weight_decay, model", "(model, 0.0, model", _RECIPES),
    Mutation("ijepa_ds/evals/finetune.py", "            set_drop_path(model.encoder, recipe.drop_path)\n", "", _RECIPES),
    Mutation("ijepa_ds/evals/finetune.py", "Mixup(recipe.mixup, recipe.cutmix,", "Mixup(recipe.mixup, 0.0,", _RECIPES),
    Mutation("ijepa_ds/evals/finetune.py", "label_smoothing=0.0 if mix else recipe.smoothing", "label_smoothing=0.0", _RECIPES),
    Mutation("ijepa_ds/evals/finetune.py", 'group["lr"] = group["first"] * share', 'group["lr"] = group["first"]', _RECIPES),
    Mutation("ijepa_ds/evals/finetune.py", "share = (step + 1) / warmup if", "share = 1.0 if", _RECIPES),
    Mutation("ijepa_ds/evals/augmented.py", "auto_augment=rand_augment or None", "auto_augment=None", _RECIPES),
    Mutation("ijepa_ds/evals/finetune.py", "_score(model.eval(), ", "_score(model, ", _RECIPES),
    Mutation("ijepa_ds/evals/attentive.py", '"weight_decay": decay, "first": lr', '"weight_decay": 0.01, "first": lr', _HEADS),
    Mutation(
        "ijepa_ds/evals/attentive.py",
        'group["lr"] = group["first"] * _factor(step / steps)',
        'group["lr"] = group["first"]',
        _HEADS,
    ),
    Mutation(
        "ijepa_ds/evals/attentive.py",
        "clip_grad_norm_(probe.parameters(), 1.0)",
        "clip_grad_norm_(probe.parameters(), 3.0)",
        _HEADS,
    ),
    Mutation("ijepa_ds/evals/attentive.py", "label_smoothing=recipe.smoothing) for", "label_smoothing=0.0) for", _HEADS),
    Mutation("ijepa_ds/evals/linear.py", "LogisticRegression(C=c, ", "LogisticRegression(C=c / 2, ", _HEADS),
    Mutation("ijepa_ds/evals/lowshot.py", "model.set_params(C=strength)", "model.set_params(C=1 / strength)", _HEADS),
    Mutation("ijepa_ds/evals/tuned.py", "(1 / settings.l2,)", "(1 / (len(few) * settings.l2),)", _HEADS),
    Mutation("ijepa_ds/evals/sweep.py", "scale = batch / _REFERENCE_BATCH", "scale = 1.0", _SWEEP),
    Mutation("ijepa_ds/evals/sweep.py", "gradients[0] + self.decay * self.weight", "gradients[0]", _SWEEP),
    Mutation("ijepa_ds/evals/sweep.py", "gradients[1] + self.decay[:, 0] * self.bias", "gradients[1]", _SWEEP),
    Mutation("ijepa_ds/evals/sweep.py", "bias_gradient[:, :, None] * self.shift[:, None]", "0.0", _SWEEP),
    Mutation("ijepa_ds/evals/sweep.py", "change + _MOMENTUM * velocity if", "velocity if", _SWEEP),
    Mutation("ijepa_ds/evals/lowshot.py", "fit_intercept=not rows", "fit_intercept=True", _HEADS),
    Mutation(
        "ijepa_ds/evals/lowshot.py", "centred = features - features.mean(axis=1, keepdims=True)", "centred = features", _HEADS
    ),
    Mutation(
        "ijepa_ds/evals/options.py", 'frame="whole" if args.task in', 'frame="crop" if args.task in', f"{_SUITE} -k command"
    ),
    Mutation(
        "ijepa_ds/evals/probes.py", "features if holdout is None else features[~holdout]", "features", f"{_SUITE} -k augmented"
    ),
    Mutation("ijepa_ds/evals/probes.py", "epoch * len(labels), settings.seed)", "0, settings.seed)", f"{_SUITE} -k scenes"),
    Mutation(
        "ijepa_ds/evals/attentive.py", "rebatched(train_batches(order), recipe.batch_size)", "train_batches(order)", _HEADS
    ),
    Mutation("ijepa_ds/evals/finetune.py", '{"encoder.reg_token"}', "set()", _RECIPES),
    Mutation(
        "ijepa_ds/evals/sweep.py",
        "return 0.1 ** int(epoch / self.decay_every)",
        "return 0.1 ** (epoch / self.decay_every)",
        _SWEEP,
    ),
    # Evaluations and alarms.
    Mutation("ijepa_ds/evals/knn.py", "F.normalize(query, dim=1)", "query", _EVALS),
    Mutation("ijepa_ds/evals/knn.py", "bank = F.normalize(train_features, dim=1)", "bank = train_features", _EVALS),
    Mutation("ijepa_ds/evals/knn.py", "(similarity - 1) / temperature", "(similarity - 1)", _EVALS),
    Mutation(
        "ijepa_ds/evals/features.py", "[:, -output.shape[1] :]", "[:, : output.shape[1]]", "tests/evals/test_suite.py -k layer"
    ),
    Mutation(
        "ijepa_ds/evals/features.py",
        "flatten(2).transpose(1, 2).flatten(1)",
        "flatten(1)",
        "tests/evals/test_pools.py -k parts",
    ),
    Mutation("ijepa_ds/data/judge.py", "if not self._values.plain:", "if False:", "tests/data/test_channels.py -k data_check"),
    Mutation("ijepa_ds/telemetry/health.py", "elif value < share * highest:", "elif value < highest / 100:", _HEALTH),
    Mutation("ijepa_ds/telemetry/health.py", "self.limits.rest if message", "0 if message", _HEALTH),
    Mutation("ijepa_ds/telemetry/health.py", "fall_share * high and rank < rank_then", "fall_share * high", _HEALTH),
    Mutation(
        "ijepa_ds/telemetry/health.py", "lower and std * rank < self.limits.fall_content * high * rank_then", "lower", _HEALTH
    ),
    Mutation("ijepa_ds/telemetry/health.py", "self._raise_highest(std, rank)\n        assert", "assert", _HEALTH),
    # Features of earlier evaluations: none may be used for others.
    Mutation(
        "ijepa_ds/evals/cache.py",
        "[*encoder.named_parameters(), *encoder.named_buffers()]",
        "encoder.named_parameters()",
        _CACHE,
    ),
    Mutation("ijepa_ds/evals/cache.py", "{sorted(plain.items())}", "", _CACHE),
    Mutation("ijepa_ds/evals/cache.py", "if size <= self._most:", "if size <= 2 * self._most:", _CACHE),
    Mutation("ijepa_ds/evals/session.py", '"frame": s.frame, ', "", _CACHE),
    Mutation("ijepa_ds/data/reading.py", "(status.st_size, status.st_mtime_ns)", "(status.st_size, 0)", _CACHE),
    # The check of a start.
    Mutation("ijepa_ds/doctor/check.py", "fcntl.LOCK_SH | fcntl.LOCK_NB", "fcntl.LOCK_UN", "tests/doctor/test_check.py"),
    Mutation("ijepa_ds/doctor/check.py", "if len(index) < batch:", "if not len(index):", "tests/doctor/test_check.py"),
    # Other channels and depths.
    Mutation("ijepa_ds/data/values.py", "least < _as_stored(low, plane.dtype) or ", "", f"{_CHANNELS} -k declared"),
    Mutation("ijepa_ds/data/values.py", "scaled[missing] = self.fill[channel]", "", f"{_CHANNELS} -k no_data"),
    Mutation(
        "ijepa_ds/data/forms.py", "np.flatnonzero(forms != usual)", "np.flatnonzero(forms < 0)", f"{_CHANNELS} -k odd_files"
    ),
    Mutation(
        "ijepa_ds/decoder/network.py", "shape.outside * (1 - inside)", "(1 - inside)", "tests/decoder/test_decoder.py -k counts"
    ),
    Mutation(
        "ijepa_ds/decoder/network.py",
        "share / share.mean(dim=(2, 3), keepdim=True)",
        "share",
        "tests/decoder/test_decoder.py -k counts",
    ),
    Mutation("ijepa_ds/model/ijepa.py", "terms.append(own)", "terms.append(loss)", "tests/dist/test_objective.py -k spread-0"),
    Mutation(
        "ijepa_ds/training/reporter.py",
        "self._loss[: len(window)]",
        "self._loss[:2]",
        "tests/dist/test_objective.py -k resumed",
    ),
    Mutation(
        "ijepa_ds/model/cpu/rates.py",
        "min(seconds(rows), seconds(rows))",
        "seconds(rows)",
        "tests/model/test_cpu_rates.py",
    ),
    Mutation(
        "ijepa_ds/decoder/measure.py",
        'if facts["condition"] == "patches":  # neighbours',
        "if False:  # neighbours",
        "tests/decoder/test_decoder.py -k neighbours",
    ),
]
EXPLAINED: dict[tuple[str, str], str] = {}  # (file, old): why no test can notice it
