"""Any command with the small backbones of `small_run` in the table.

python small_command.py -m regseg_jax.main FLAGS ... is `python -m regseg_jax.main FLAGS ...`.
"""

import runpy
import sys

import small_run

assert small_run.variants.BACKBONES["small"]
dash_m, module, *arguments = sys.argv[1:]
assert dash_m == "-m"
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__")
