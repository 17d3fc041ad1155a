"""One side of a comparison in its own process: runs the method named on each line of standard input.

    python -m benchmarks.worker '{"side": "ours", "model": "small", ...}'

Answers each line with one JSON line. The parent alternates between workers, so that other load affects both sides.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from typing import Any

from ijepa_ds.cluster import environment


def main() -> int:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries goes to standard error
    request = json.loads(sys.argv[1])
    if request["side"] == "ours":
        environment.settle(os.environ)  # as a run does, before torch is imported
    from benchmarks import sides

    setting = sides.Setting(**request)
    side: Any = sides.SIDES[setting.side](setting)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        began = time.perf_counter()
        answer = getattr(side, line.strip())()
        answer |= {"all": time.perf_counter() - began, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        answers.write(json.dumps(answer) + "\n")
    side.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
