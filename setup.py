"""The packages, and the folders that a wheel holds in `ijepa_ds/shipped`. Everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

SHIPPED = {"configs": ["*.yaml"], "ds_configs": ["*.json"], "launch": ["*.sh", "*.sbatch", "*.example"]}

setup(
    packages=[*find_packages(include=["ijepa_ds", "ijepa_ds.*"]), *(f"ijepa_ds.shipped.{folder}" for folder in SHIPPED)],
    package_dir={f"ijepa_ds.shipped.{folder}": folder for folder in SHIPPED},
    package_data={f"ijepa_ds.shipped.{folder}": names for folder, names in SHIPPED.items()},
    include_package_data=False,
)
