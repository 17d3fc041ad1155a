"""How often the bands of a power law hold the truth: `python -m benchmarks.coverage`.

Ladders are simulated: error = E + 40 x^-0.3 at 5 to 8 points over a factor of 30, with noise of 1 to 3 %. A law is fitted to
each and extrapolated. Printed: percent of the ladders whose 95 % band holds the true error, with the envelope over all E that
the points allow, and with the law's own E alone.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from ijepa_ds.scale import power


def coverage(irreducible: float, points: int, noise: float, factor: float, ladders: int) -> tuple[float, float]:
    """Percent of ladders whose band holds the truth at `factor` times the last point: with the envelope, and without."""
    x = np.geomspace(1, 30, points)[:, None]
    far, whole, alone = np.array([[30 * factor]]), 0, 0
    truth = irreducible + 40 * (30 * factor) ** -0.3
    for seed in range(ladders):
        deviations = np.random.default_rng((seed, points)).standard_normal(points)
        law = power.fit(["x"], x, (irreducible + 40 * x[:, 0] ** -0.3) * np.exp(noise * deviations))
        bands = law.predict(far)
        value, half, _ = law.itself().predict(far)
        whole += bool(bands.low[0] <= truth <= bands.high[0])
        alone += bool(abs(np.log(truth / value[0])) <= half[0])
    return 100 * whole / ladders, 100 * alone / ladders


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", type=int, default=200, help="simulated for each line (200)")
    ladders = parser.parse_args().ladders
    print("E    points  noise  | x3: envelope  own E | x10: envelope  own E")
    lowest = 100.0
    for irreducible in (0.0, 5.0, 20.0):
        for points in (5, 6, 8):
            for noise in (0.01, 0.02, 0.03):
                near, far = (coverage(irreducible, points, noise, factor, ladders) for factor in (3.0, 10.0))
                lowest = min(lowest, near[0], far[0])
                print(
                    f"{irreducible:<4g} {points:<7} {noise:.0%}     | {near[0]:8.1f} {near[1]:10.1f} |"
                    f" {far[0]:9.1f} {far[1]:10.1f}"
                )
    print(f"lowest coverage of the envelope: {lowest:.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
