"""`python -m regseg_jax.main` with the small backbones of `small_run` in the table.

It takes the place of the Python interpreter in the launch scripts: its first two arguments,
`-m regseg_jax.main`, are those that the scripts pass.
"""

import runpy
import sys

import small_run

assert sys.argv[1:3] == ["-m", "regseg_jax.main"], sys.argv
assert small_run
sys.argv = ["regseg_jax.main", *sys.argv[3:]]
runpy.run_module("regseg_jax.main", run_name="__main__")
