"""A diffusion decoder that visualises frozen representations: features common to its samples are in the representation.

As RCDM (Bordes, Balestriero & Vincent 2022) and the figures of I-JEPA (Assran et al. 2023). Networks, noise schedules and
samplers come from diffusers (`pip install 'ijepa_ds[decoder]'`).
"""
