import numpy as np

from regseg_jax.reports import curves
from regseg_jax.reports.curves import RunCurves


def _run(*losses, name="a", split="val", **scores):
    """A run with these losses at steps 0, 1, 2 and the mean IoU of each evaluation at step 2."""
    records = [{"step": step, "time": "t", "train/loss": loss} for step, loss in enumerate(losses)]
    for key, values in scores.items():
        records += [{"step": 2 + i, f"{key}/mean_iou": value} for i, value in enumerate(values)]
    return RunCurves(name, records, split)


def _draw(monkeypatch, *runs):
    """The axes of the chart: loss, mean IoU, learning rate, throughput."""
    figures = []
    monkeypatch.setattr(curves, "render_figure", figures.append)
    curves.draw_curves(runs)
    return figures[0].axes


def test_curves_follow_the_values_and_leave_gaps():
    picture = np.asarray(curves.draw_curves([_run(1.0, 0.5, 0.2)]))
    assert picture.shape[1:] == (1000, 3)
    assert picture.shape[0] > 1100
    others = ([_run(1.0, 0.7, 0.2)], [_run(1.0, None, 0.2)])
    assert all((np.asarray(curves.draw_curves(other)) != picture).any() for other in others)


def test_every_panel_has_its_values(monkeypatch):
    records = [
        {"step": 5, "train/learning_rate": 0.1, "train/images_per_second": 7.0},
        {"step": 5, "train/loss": 2.0, "test/mean_iou": 0.25},
    ]
    panels = _draw(monkeypatch, RunCurves("a", records, "test"))
    labels = ["training loss", "mean IoU, test (%)", "learning rate", "images a second"]
    assert [axes.get_ylabel() for axes in panels] == labels
    assert [axes.lines[0].get_ydata().tolist() for axes in panels] == [[2], [25], [0.1], [7]]
    assert all(axes.lines[0].get_xdata().tolist() == [5] for axes in panels)


def test_scores_of_every_run_and_of_averaged_weights(monkeypatch):
    first = _run(1.0, val=[0.5, 0.25], val_ema=[0.125, 0.75], other=[1.0])
    _, axes, *_ = _draw(monkeypatch, first, _run(1.0, name="b", val=[None, 0.5]))
    drawn = [(line.get_linestyle(), line.get_ydata().tolist()) for line in axes.lines[::2]]
    np.testing.assert_equal(drawn, [("-", [50, 25]), ("--", [12.5, 75]), ("-", [np.nan, 50])])
    stars = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines[1::2]]
    assert stars == [(2, 50), (3, 75), (3, 50)]
    assert axes.get_title() == "best: 75.00 at step 3 (val_ema of a); dashed: averaged weights"


def test_a_run_without_values_yet(monkeypatch):
    panels = _draw(monkeypatch, _run(None, val=[None]))
    assert all(axes.texts[0].get_text() == "no values yet" for axes in panels)
    assert panels[1].get_title() == "no evaluation yet"
    row = curves.format_runs([_run(None, 1.5)]).splitlines()[-1].split()
    assert row == ["a", "1", "1.5000", "none", "val", "0", "none", "none", "none"]


def test_the_table_has_the_last_and_the_best_scores():
    run = _run(2.0, 1.0, val=[0.5, 0.75, 0.25], val_ema=[0.5])
    rows = [row.split() for row in curves.format_runs([run]).splitlines()[2:]]
    assert rows == [
        ["a", "4", "1.0000", "none", "val", "3", "25.00", "75.00", "3"],
        ["a", "4", "1.0000", "none", "val_ema", "1", "50.00", "50.00", "2"],
    ]
