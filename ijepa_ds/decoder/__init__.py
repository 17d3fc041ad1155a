"""A diffusion model that draws what a frozen representation tells: what samples share is in it, what differs is not.

In the manner of RCDM (Bordes, Balestriero & Vincent 2022) and of the figures of I-JEPA (Assran et al. 2023). Networks, noise
schedules and samplers are diffusers' (`pip install 'ijepa_ds[decoder]'`).
"""
