"""Run scripts as `python SCRIPT` does, one after another, so that what they import is imported once.

    python tests/run_scripts.py SCRIPT ...

A line `running SCRIPT` is printed before the output of each.
"""

import runpy
import sys

for script in sys.argv[1:]:
    print("running", script, flush=True)
    sys.argv[:] = [script]
    runpy.run_path(script, run_name="__main__")
