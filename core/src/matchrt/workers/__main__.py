"""`python -m matchrt.workers FOLDER`: see `matchrt.workers.serve`."""

from __future__ import annotations

import sys
from pathlib import Path

from matchrt.workers.serve import serve

if __name__ == "__main__":
    serve(Path(sys.argv[1]))
