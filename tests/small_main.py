"""`python -m MODULE FLAGS ...` with the small backbones of `small_run` in the table.

It takes the place of the Python interpreter: `small_main.py -m regseg_jax.main --workdir=...`.
"""

import runpy
import sys

import small_run

dash_m, module, *arguments = sys.argv[1:]
assert dash_m == "-m", sys.argv
assert small_run
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__")
