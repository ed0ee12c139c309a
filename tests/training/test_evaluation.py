import contextlib
import functools
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from regseg_jax.data.classes import CAMVID, CITYSCAPES, IGNORE_LABEL
from regseg_jax.models.regseg import RegSeg
from regseg_jax.runs.scores import format_evaluation, format_scores, named_scores
from regseg_jax.training.evaluation import (
    EvalConfig,
    Evaluation,
    Evaluator,
    create_image_score_fn,
)
from regseg_jax.training.metrics import ConfusionMatrix
from regseg_jax.training.sharding import batch_sharded, replicated

SIZE = (40, 64)


@pytest.mark.parametrize(
    ("every_epochs", "num_steps", "expected"),
    [
        (0, 100, list(range(10, 101, 10))),
        (0, 12, [2, 3, 4, 5, 6, 8, 9, 10, 11, 12]),
        (0, 3, [1, 2, 3]),
        (2, 25, [8, 16, 24, 25]),  # epochs of 4 steps
    ],
)
def test_when_an_evaluation_is_due(every_epochs, num_steps, expected):
    config, steps = EvalConfig(every_epochs=every_epochs), range(1, num_steps + 1)
    assert [step for step in steps if config.is_due(step, num_steps, 4)] == expected


class Predicted:
    """Examples whose images hold in red what the stand-in for a model predicts."""

    image_sizes = None

    def __init__(self, num_examples: int, num_classes: int):
        rng = np.random.default_rng(0)
        shape = (num_examples, 5, 8)
        labels, others = (rng.integers(0, num_classes, shape) for _ in range(2))
        labels[rng.random(shape) < 0.1] = IGNORE_LABEL
        errors = rng.permutation(np.linspace(0.1, 0.9, num_examples))[:, None, None]
        predictions = np.where(labels == IGNORE_LABEL, 0, labels)
        predictions = np.where(rng.random(shape) < errors, others, predictions)
        self.labels, self.predictions = (
            np.kron(x, np.ones((8, 8), int)).astype(np.uint8) for x in (labels, predictions)
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = np.repeat(self.predictions[index][..., None], 3, axis=-1)
        return {"image": image, "label": self.labels[index], "name": f"street_{index}"}


def _evaluate(source: Predicted, class_table, **options) -> Evaluation:
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))

    def eval_step(variables, batch):
        predictions = batch["image"][..., 0]
        matrix = ConfusionMatrix.from_model_output(
            labels=batch["label"].astype(jnp.int32),
            predictions=predictions.astype(jnp.int32),
            num_classes=class_table.num_classes,
        )
        return predictions, matrix

    compiled = jax.jit(eval_step, out_shardings=(batch_sharded(mesh), replicated(mesh)))
    config = EvalConfig(batch_size=4, **{"num_panels": 0, **options})
    return Evaluator(compiled, source, class_table, mesh, config, num_workers=0, dtype=jnp.float32)(
        {"params": {}, "batch_stats": {}}
    )


def _mean_iou(source: Predicted, index: int) -> float:
    label, prediction = source.labels[index], source.predictions[index]
    scored = label != IGNORE_LABEL
    ious = [
        (scored & (label == c) & (prediction == c)).sum()
        / (scored & ((label == c) | (prediction == c))).sum()
        for c in range(11)
        if (scored & ((label == c) | (prediction == c))).any()
    ]
    return float(np.mean(ious))


def test_the_worst_images_are_listed_and_drawn():
    source = Predicted(10, 11)  # not a multiple of the batch: fillers are never among the worst
    source.labels[4] = IGNORE_LABEL  # nor is an image without labels
    evaluation = _evaluate(source, CAMVID, num_worst=3)
    ious = {index: _mean_iou(source, index) for index in range(10) if index != 4}
    expected = sorted(ious, key=ious.get)[:3]
    assert [name for name, _ in evaluation.worst] == [f"street_{index}" for index in expected]
    np.testing.assert_allclose([v for _, v in evaluation.worst], [ious[i] for i in expected])
    assert list(evaluation.panels) == ["worst_0", "worst_1", "worst_2"]
    line = rf"street_{expected[0]} +{100 * ious[expected[0]]:.2f}\n"
    assert re.search(line, format_evaluation(evaluation, CAMVID))


def test_no_worst_images_unless_asked_for():
    evaluation = _evaluate(Predicted(5, 11), CAMVID, num_panels=1)
    assert evaluation.worst == ()
    assert list(evaluation.panels) == ["panel_0000"]


def test_the_reduced_mean_is_there_where_the_table_has_one():
    scores = _evaluate(Predicted(8, 19), CITYSCAPES).scores
    named = named_scores(scores, CITYSCAPES, "val")
    kept = [i for i in range(19) if i not in (14, 15, 16)]
    assert named["val/mean_iou_reduced"] == pytest.approx(scores.iou_per_class[kept].mean())
    table = format_scores(scores, CITYSCAPES)
    assert re.search(rf"mean IoU, reduced +{100 * named['val/mean_iou_reduced']:.2f}\n", table)
    camvid = _evaluate(Predicted(8, 11), CAMVID).scores
    assert "val/mean_iou_reduced" not in named_scores(camvid, CAMVID, "val")
    assert "reduced" not in format_scores(camvid, CAMVID)


class Unequal:
    """Images of two sizes; the labels are set later."""

    image_sizes = ((40, 56), (33, 50), (33, 50), (40, 56), (33, 50))

    def __init__(self):
        rng = np.random.default_rng(0)
        colors = [rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3)) for h, w in self.image_sizes]
        self.images = [
            np.kron(color, np.ones((8, 8, 1), int))[:h, :w].astype(np.uint8)
            for color, (h, w) in zip(colors, self.image_sizes, strict=True)
        ]
        self.labels = [np.zeros(size, np.uint8) for size in self.image_sizes]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {
            "image": self.images[index],
            "label": self.labels[index],
            "name": f"street_{index}",
        }


def _random_variables(model: RegSeg) -> dict:
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    init = functools.partial(model.init, train=False)
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        x = rng.standard_normal(leaf.shape).astype(np.float32)
        return x * (2 / np.prod(leaf.shape[:3])) ** 0.5 if leaf.ndim == 4 else 0.1 * x

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0), images))


@pytest.mark.parametrize(("size_multiple", "num_sizes"), [(1, 2), (16, 1)])
def test_the_model_scores_every_pixel_of_unequal_sizes_once(small_model, size_multiple, num_sizes):
    """The real step, on batches that fillers complete and on images padded on two sides."""
    source, variables = Unequal(), _random_variables(small_model)
    score_fn = jax.jit(create_image_score_fn(small_model, EvalConfig()), static_argnums=2)
    rng, expected, sizes = np.random.default_rng(1), np.zeros((11, 11), int), set()
    for i, image in enumerate(source.images):
        height, width = image.shape[:2]
        padding = [(0, -side % size_multiple) for side in (height, width)]
        padded = np.stack(
            [
                np.pad(image[..., c], padding, constant_values=mean)
                for c, mean in enumerate((124, 116, 104))
            ],
            axis=-1,
        )
        sizes.add(padded.shape[:2])
        scores = score_fn(variables, padded[None], padded.shape[:2])
        prediction = np.asarray(scores)[0, :height, :width].argmax(-1)
        # Mostly right labels: an image scored against another's would show.
        label = np.where(rng.random(prediction.shape) < 0.8, prediction, 3)
        label[rng.random(prediction.shape) < 0.1] = IGNORE_LABEL
        source.labels[i] = label.astype(np.uint8)
        scored = label != IGNORE_LABEL
        np.add.at(expected, (label[scored], prediction[scored]), 1)
    assert len(sizes) == num_sizes
    assert (expected.sum(0) > 0).sum() > 2  # several classes are predicted

    config = EvalConfig(batch_size=8, size_multiple=size_multiple, num_worst=5)
    evaluation = Evaluator.create(small_model, source, CAMVID, config, num_workers=0)(variables)
    matrix = evaluation.scores.confusion_matrix
    np.testing.assert_array_equal(matrix.sum(1), expected.sum(1))  # the labels, each once
    assert np.abs(matrix - expected).sum() <= 0.002 * expected.sum()  # ties
    assert {name for name, _ in evaluation.worst} == {f"street_{i}" for i in range(5)}


def test_iou_as_cityscapes_own_evaluator_prints_it(tmp_path):
    """Needs `pip install cityscapesscripts`, which requirements-dev.txt leaves out."""
    module = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    evaluator = pytest.importorskip(module)
    source = Predicted(6, 19)
    ids = np.array([*CITYSCAPES.label_ids], np.uint8)
    ignored = np.array([0, 3, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30], np.uint8)
    rng = np.random.default_rng(0)
    pairs = []
    for index, (label, prediction) in enumerate(
        zip(source.labels, source.predictions, strict=True)
    ):
        void = label == IGNORE_LABEL
        raw = np.where(void, rng.choice(ignored, label.shape), ids[np.where(void, 0, label)])
        names = [
            tmp_path / f"a_{index:06d}_000019_{kind}.png" for kind in ("pred", "gtFine_labelIds")
        ]
        for name, array in zip(names, (ids[prediction], raw), strict=True):
            Image.fromarray(array).save(name)
        pairs.append([str(name) for name in names])
    args = evaluator.args
    args.evalInstLevelScore = args.JSONOutput = args.colorized = False
    args.bold = args.nocol = ""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluator.evaluateImgLists(*map(list, zip(*pairs, strict=True)), args)
    theirs = dict(
        re.findall(r"^([a-z ]+?) *: +([0-9.]+) +(?:nan|[0-9.]+)$", printed.getvalue(), re.MULTILINE)
    )
    scores = _evaluate(source, CITYSCAPES).scores
    ours = {
        name: f"{iou:.3f}"
        for name, iou in zip(CITYSCAPES.class_names, scores.iou_per_class, strict=True)
    }
    assert {name: theirs[name] for name in ours} == ours
    average = re.search(r"Score Average : *([0-9.]+)", printed.getvalue())[1]
    assert average == f"{scores.mean_iou:.3f}"
