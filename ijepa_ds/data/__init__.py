"""The image data plane: indices of sources, sample order and crops, and the loaders."""

from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source

__all__ = ["ImageIndex", "ScanOptions", "open_source"]
