import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden import author

from regseg_jax.export import torch_decoders, torch_model
from regseg_jax.export.torch_model import (
    create_torch_model,
    fuse_batch_norm,
    load_weights,
)
from regseg_jax.models import variants

PARAMETERS = {
    "exp48_decoder26": 3_334_951,
    "exp53_decoder29": 6_131_579,
    "exp43_decoder14": 3_368_023,
    "regnety600mf_decoder14": 5_688_995,
    "exp50_decoder4": 3_392_407,
    "exp43_lraspp": 3_247_082,
    "exp43_BisenetDecoder": 3_926_007,
    "exp43_SFNetDecoder": 3_405_079,
    "exp43_decoder10": 3_295_039,
    "exp43_decoder12": 3_236_951,
}


@pytest.fixture(autouse=True, scope="module")
def single_thread():
    """PyTorch spins while it waits: on a busy machine two threads are 50 times slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def create_random_model(name: str, num_classes: int = 5) -> torch_model.RegSeg:
    """In evaluation mode, with batch norms that are not identities."""
    generator = torch.Generator().manual_seed(0)
    model = create_torch_model(name, num_classes).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.2, generator=generator)
            torch.nn.init.normal_(module.bias, 0, 0.2, generator=generator)
            torch.nn.init.normal_(module.running_mean, 0, 0.2, generator=generator)
            torch.nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
    return model


def random_images(height: int = 35, width: int = 51) -> torch.Tensor:
    return torch.randn((1, 3, height, width), generator=torch.Generator().manual_seed(1))


def relative_error(actual, expected) -> float:
    """The largest difference, in standard deviations of what is expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / expected.std())


class TestTables:
    def test_every_decoder_is_there(self):
        assert tuple(torch_model.DECODERS) == variants.DECODERS

    @pytest.mark.parametrize("name", PARAMETERS)
    def test_parameter_counts(self, name):
        with torch.device("meta"):
            model = create_torch_model(name, 19)
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]

    def test_aliases_build_the_models_they_name(self):
        with torch.device("meta"):
            alias, model = (create_torch_model(n, 19) for n in ("regseg", "exp48_decoder26"))
        assert str(alias) == str(model)

    def test_an_unknown_name_lists_the_known_ones(self):
        with pytest.raises(ValueError, match=r"'exp99_decoder26'.*exp48.*lraspp.*regseg_large"):
            create_torch_model("exp99_decoder26", 19)

    @pytest.mark.parametrize("backbone", ["exp48", "exp53", "regnety600mf"])
    def test_dilation_rates_in_the_name(self, backbone):
        count = len(variants.get_dilation_rates(variants.BACKBONES[backbone]))
        rates = [[1, 2 + i] for i in range(count)]
        variant = variants.create_variant(backbone, "decoder14", rates)
        with torch.device("meta"):
            model = create_torch_model(variant.name, 19)
        dilations = [m.dilation[0] for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
        assert [d for d in dilations if d > 1] == [pair[1] for pair in rates]

    @pytest.mark.parametrize(
        ("rates", "message"), [("1-2", "2 blocks"), ("1" + 13 * "-1", "14 blocks")]
    )
    def test_rates_of_the_wrong_count(self, rates, message):
        with pytest.raises(ValueError, match=message):
            create_torch_model(f"exp48@{rates}_decoder26", 19)

    def test_no_classes(self):
        with pytest.raises(ValueError, match="num_classes is 0"):
            create_torch_model("regseg", 0)


def create_author_model(name: str) -> torch_model.RegSeg:
    """With the weights of the golden set."""
    model = create_torch_model(name, 19)
    weights = author.create_state_dict(name)
    load_weights(model, {key: torch.from_numpy(np.asarray(x)) for key, x in weights.items()})
    return model


class TestAuthorsCode:
    """Equality with the author's implementation, whose outputs are stored in tests/golden."""

    def test_state_dicts_have_its_names_shapes_and_order(self):
        for name, expected in author.load_shapes().items():
            with torch.device("meta"):
                state_dict = create_torch_model(name, 19).state_dict()
            actual = [(key, list(value.shape)) for key, value in state_dict.items()]
            assert actual == list(expected.items()), name

    @pytest.mark.parametrize("name", author.VARIANTS)
    def test_logits_in_evaluation_mode(self, name):
        images = torch.from_numpy(author.create_inputs()[0]["even"])
        with torch.inference_mode():
            logits = create_author_model(name).eval()(images)
        expected = author.load(name)
        assert author.compute_logit_error(logits, expected, "eval_logits_even") < 1e-4

    def test_training_mode_in_float64(self):
        images, labels = author.create_inputs()
        name = "exp43_decoder14"
        model = create_author_model(name).double().train()
        logits = model(torch.from_numpy(images["odd"]).double())
        loss = F.cross_entropy(logits, torch.from_numpy(labels).long(), ignore_index=255)
        loss.backward()
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

        expected = author.load(name)
        assert author.compute_logit_error(logits.detach(), expected, "train_logits_odd") < 1e-6
        assert loss.item() == pytest.approx(float(expected["train_loss"]), rel=1e-6)
        assert set(expected["param_names"]) == set(parameters)
        norms = [parameters[name].grad.norm().item() for name in expected["param_names"]]
        np.testing.assert_allclose(norms, expected["grad_norms"], rtol=1e-6, atol=1e-12)
        sums = [buffers[name].sum().item() for name in expected["bn_names"]]
        np.testing.assert_allclose(sums, expected["bn_sums_after_step"], rtol=1e-6, atol=1e-9)


class TestRunning:
    @pytest.mark.parametrize("decoder", variants.DECODERS)
    def test_any_size_and_nothing_depends_on_values(self, decoder):
        # Meta tensors have no values: a branch on one, or a copy to the host, raises.
        with torch.device("meta"):
            model = create_torch_model(f"exp48_{decoder}", 3).eval()
            for size in ((33, 50), (17, 1)):
                assert model(torch.empty(2, 3, *size)).shape == (2, 3, *size)

    def test_channels_last(self):
        model, images = create_random_model("exp43_SFNetDecoder"), random_images()
        with torch.inference_mode():
            expected = model(images)
            model = model.to(memory_format=torch.channels_last)
            logits = model(images.to(memory_format=torch.channels_last))
        assert relative_error(logits, expected) < 1e-4

    def test_autocast(self):
        model, images = create_random_model("exp43_SFNetDecoder"), random_images()
        with torch.inference_mode():
            expected = model(images)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(images)
        assert logits.dtype == torch.bfloat16
        assert 0 < relative_error(logits.float(), expected) < 0.2

    def test_half_precision_weights(self):
        with torch.device("meta"):
            model = create_torch_model("exp43_SFNetDecoder", 3).eval().bfloat16()
            logits = model(torch.empty(2, 3, 33, 50, dtype=torch.bfloat16))
        assert logits.dtype == torch.bfloat16

    def test_adaptive_mean_equals_pytorch_adaptive_average_pool(self):
        x = random_images(7, 10)
        for bins in (1, 2, 3, 6, 9):
            expected = F.adaptive_avg_pool2d(x, bins)
            torch.testing.assert_close(torch_decoders.AdaptiveMean(bins)(x), expected)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporter that traces
    def test_adaptive_mean_is_exported_to_onnx_right(self, tmp_path):
        onnxruntime = pytest.importorskip("onnxruntime")
        path, x = tmp_path / "mean.onnx", random_images(5, 16)
        model = torch_decoders.AdaptiveMean(6)
        torch.onnx.export(model, (x,), str(path), input_names=["x"], dynamo=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (actual,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(actual, model(x), rtol=1e-5, atol=1e-6)


class TestFuseBatchNorm:
    @pytest.mark.parametrize("name", ["exp50_decoder26", "exp43_BisenetDecoder"])
    def test_computes_the_same(self, name):
        model, images = create_random_model(name), random_images()
        fused = fuse_batch_norm(model.train())
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
        with torch.inference_mode():
            assert relative_error(fused(images), model.eval()(images)) < 1e-4

    def test_leaves_the_model_alone(self):
        model = create_random_model("exp48_decoder14").train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert not fuse_batch_norm(model).training
        assert model.training
        assert before.keys() == model.state_dict().keys()
        assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


class TestLoadWeights:
    def test_weights_that_do_not_fit_are_all_named(self):
        model = create_torch_model("exp48_decoder26", 3)
        before = model.stem.conv.weight.detach().clone()
        weights = {name: tensor + 1 for name, tensor in model.state_dict().items()}
        weights["module.stem"] = weights.pop("stem.bn.bias")
        weights["decoder.classifier.bias"] = torch.zeros(19)
        message = (
            r"3 differences \(missing stem\.bn\.bias \[32\]; unexpected module\.stem; "
            r"decoder\.classifier\.bias has shape \[19\], not \[3\]\)"
        )
        with pytest.raises(ValueError, match=message):
            load_weights(model, weights)
        assert model.stem.conv.weight.equal(before)
