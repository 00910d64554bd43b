"""A worker's side of a comparison: requests on stdin, answers on stdout, a JSON object a line.

    {"work": {...}}  makes this work's arrays and programs and warms them up   -> {"seconds": 9.1}
    {"run": true}    does the work                                   -> {"seconds": 1.2, ...}

A peer is a script beside this one. Python puts a script's folder first on its path, so peers
find this module whatever checkout of score_jax PYTHONPATH names; no peer imports another's
framework.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], dict[str, float]]  # does the work to its end; returns counts


def serve(prepare: Callable[[dict[str, Any]], Run]) -> None:
    """Answers requests until stdin ends.

    Args:
      prepare: makes a work ready, compiled and warm.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print, too
    run: Run | None = None
    for line in sys.stdin:
        request = json.loads(line)
        start, start_cpu = time.perf_counter(), time.process_time()
        counts: dict[str, float] = {}
        if "work" in request:
            run = prepare(request["work"])
        else:
            assert run is not None, "the first request names a work"
            counts = run()
        found = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - start_cpu,  # of all threads
        }
        print(json.dumps(found | counts), file=answers, flush=True)
