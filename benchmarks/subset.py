"""The first classes of a tar of images in class folders, as another tar: a smaller task for short runs.

The order of the files stays.

    python -m benchmarks.subset ../shared/data/tinyimagenet/train.tar train20.tar --classes 20
"""

from __future__ import annotations

import argparse
import tarfile
from pathlib import Path


def main() -> None:
    """Write the tar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, default=20, help="folders, in alphabetical order (20)")
    args = parser.parse_args()
    with tarfile.open(args.source) as source, tarfile.open(args.out, "w") as out:
        files = [member for member in source if member.isfile()]
        kept = set(sorted({Path(member.name).parent for member in files})[: args.classes])
        for member in files:
            if Path(member.name).parent in kept:
                out.addfile(member, source.extractfile(member))


if __name__ == "__main__":
    main()
