import numpy as np
import pytest

from regseg_jax.data.classes import CAMVID
from regseg_jax.models import field_of_view, variants
from regseg_jax.reports import charts


def test_class_iou_is_sorted_and_marks_absent_classes(monkeypatch):
    figures = []
    render = charts.render_figure
    monkeypatch.setattr(charts, "render_figure", lambda f: figures.append(f) or render(f))
    iou = np.linspace(0.1, 0.9, CAMVID.num_classes)
    iou[4] = np.nan
    picture = charts.draw_class_iou(iou, CAMVID)
    assert picture.width == 800
    (axes,) = figures[0].axes
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert names == [*(CAMVID.class_names[i] for i in (10, 9, 8, 7, 6, 5, 3, 2, 1, 0)), "sign"]
    labels = [text.get_text() for text in axes.texts]
    assert labels[0] == "90.0"
    assert labels[-1] == "absent"
    assert axes.get_title() == "mean IoU 50.80 over 10 classes"


def test_class_iou_draws_when_every_class_is_absent():
    charts.draw_class_iou(np.full(CAMVID.num_classes, np.nan), CAMVID)


def test_class_iou_wants_a_value_for_each_class():
    with pytest.raises(ValueError, match=r"shape \(3,\).*11 classes"):
        charts.draw_class_iou(np.zeros(3), CAMVID)


def draw_view(name):
    layers = field_of_view.trace_field_of_view(variants.BACKBONES[name])
    return np.asarray(charts.draw_field_of_view(name, layers, (1024, 2048)))


def find_color(picture, color):
    return np.argwhere((picture == color).all(-1))


def test_chart_shows_every_layer():
    picture = draw_view("exp48")
    points = find_color(picture, (31, 119, 180))  # matplotlib's tab:blue
    height, width = np.ptp(points, axis=0) / picture.shape[:2]
    assert height > 0.5
    assert width > 0.8


def test_chart_marks_gaps():
    red = (214, 39, 40)  # matplotlib's tab:red
    marks = find_color(draw_view("exp30"), red)
    assert np.ptp(marks, axis=0).min() > 50  # a point of the curve, besides the legend's
    assert len(find_color(draw_view("exp48"), red)) == 0
