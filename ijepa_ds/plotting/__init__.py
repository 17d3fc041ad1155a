"""Figures that several packages draw: bars, curves, heat maps, spectra and masks."""
