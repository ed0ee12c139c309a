"""What a search writes: the variant file `found.json` and a chart of the dilation rates."""

import json
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from regseg_jax.models import variants
from regseg_jax.models.field_of_view import compute_field_of_view
from regseg_jax.reports.charts import render_figure
from regseg_jax.reports.metric_writer import METRICS_FILE, read_metrics
from regseg_jax.reports.pictures import save_png
from regseg_jax.reports.tables import format_table
from regseg_jax.runtime.files import write_json
from regseg_jax.training.rate_search import RateSearch
from regseg_jax.training.train_state import TrainState

FOUND_FILE = "found.json"
RATES_PICTURE = "rates.png"
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def save_found(
    workdir: str | os.PathLike, model_name: str, rate_search: RateSearch, state: TrainState
) -> str:
    """Writes `found.json`, the current dilation rates rounded, and `pictures/rates.png`.

    Args:
      workdir: of the search, with its `config.json` and `metrics.jsonl`.
      model_name: the variant that was searched.
      rate_search: of the run.
      state: of the run.

    Returns:
      A table of what was found, for the terminal.
    """
    workdir = pathlib.Path(workdir)
    rates = rate_search.fetch_rates(state.params)
    rounded = rate_search.round_rates(rates)
    base = variants.get_variant(model_name)
    backbone_name = base.name.partition("_")[0].partition("@")[0]
    variant = variants.create_variant(backbone_name, base.decoder, rounded)
    seen = compute_field_of_view(variant.backbone)
    config = json.loads((workdir / "config.json").read_text())
    content = {
        "backbone": backbone_name,
        "decoder": base.decoder,
        "dilation_rates": rounded,
        "found": {
            "seed": config["seed"],
            "step": int(state.step),
            "rates": rates.tolist(),
            "field_of_view": seen,
            "config": config,
        },
    }
    write_json(workdir / FOUND_FILE, content)
    names = [layer.name for layer in rate_search.layers]
    picture = draw_rates(read_metrics(workdir / METRICS_FILE), names)
    save_png(picture, workdir / "pictures" / RATES_PICTURE)

    rows = [
        (
            name,
            ", ".join(f"{rate:.2f}" for rate in real),
            ", ".join(map(str, whole)),
            f"{bound:.0f}",
        )
        for name, real, whole, bound in zip(
            names, rates.tolist(), rounded, rate_search.compute_bounds(rates).tolist(), strict=True
        )
    ]
    table = format_table(("block", "rates", "rounded", "bound"), rows)
    return f"{table}\nfield of view {seen} pixels; wrote {workdir / FOUND_FILE}"


def draw_rates(records: Sequence[dict], block_names: Sequence[str]) -> Image.Image:
    """Charts the dilation rates of each block over the steps, one chart per block, with the bound.

    Args:
      records: of `metrics.jsonl`, in order; those without `search/` values are skipped.
      block_names: in the order of computation.

    Returns:
      An RGB picture.
    """
    records = [r for r in records if f"search/{block_names[0]}/bound" in r]
    steps = [record["step"] for record in records]
    columns = min(4, len(block_names))
    rows = math.ceil(len(block_names) / columns)
    figure = Figure(figsize=(3.5 * columns, 2.4 * rows + 0.6), dpi=100, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, name in zip(grid.flat, block_names, strict=False):
        bounds = [record[f"search/{name}/bound"] for record in records]
        axes.plot(steps, bounds, "--", color="black", linewidth=1, label="bound")
        for i, color in enumerate(_COLORS):
            rates = [record.get(f"search/{name}/rate_{i}", np.nan) for record in records]
            if np.isfinite(rates).any():
                axes.plot(steps, rates, color=color, label=f"branch {i + 1}")
                axes.annotate(f" {rates[-1]:.1f}", (steps[-1], rates[-1]), va="center", fontsize=9)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(block_names) :]:
        axes.axis("off")
    grid[0, 0].set_yscale("log", base=2)
    grid[0, 0].yaxis.set_major_formatter("{x:g}")
    grid[0, 0].set_ylim(bottom=0.9)
    grid[0, 0].legend(fontsize=8)
    figure.supxlabel("step")
    figure.supylabel("dilation rate")
    return render_figure(figure)
