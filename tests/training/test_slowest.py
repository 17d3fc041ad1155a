"""Figures of ranks survive a maximum together with the rank."""

import numpy as np

from ijepa_ds.training.slowest import pack, unpack


def test_the_maximum_keeps_value_and_rank():
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1000, (700, 3))
    maxima = np.array([pack(row.tolist(), rank) for rank, row in enumerate(values)], dtype=np.int64).max(axis=0)
    for worst, column in zip(unpack(maxima.tolist()), values.T, strict=True):
        assert worst.rank == column.argmax() and abs(worst.value - column.max()) < 1e-5


def test_a_week_of_waiting_and_a_terabyte_fit():
    worst = unpack(np.array(pack((6e5, 6e5, 1024.0), 4095), dtype=np.int64).tolist())
    assert [(round(figure.value), figure.rank) for figure in worst] == [(600000, 4095), (600000, 4095), (1024, 4095)]
