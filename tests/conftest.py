"""Shared by all tests: simulated devices, a compilation cache, optional fixtures, a small model."""

import os
import pathlib

# Before JAX starts: 8 devices on the CPU, so that sharding is tested anywhere.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The same operations, compiled in half the time; "0" tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# PyTorch's threads beside JAX's on few cores wait for each other for seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = pathlib.Path(__file__).parents[1]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))

import jax
import pytest
from absl import flags

from regseg_jax.models import variants
from regseg_jax.models.regseg import RegSeg

# Grain's worker processes read absl's flags.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also the tests that take minutes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; needs --run-slow")


# Files that take minutes come first, so that no worker is left alone with one at the end.
LONGEST_FILES = ("test_train.py", "test_steps.py", "test_parity.py", "test_benchmark.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)
    if not config.getoption("--run-slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; use --run-slow"))


@pytest.fixture(scope="session")
def fixtures_dir() -> pathlib.Path:
    """The folder with `golden/` and `camvid/`; the test is skipped where there is none."""
    folder = pathlib.Path(os.environ.get("REGSEG_FIXTURES", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no fixtures at {folder}; set REGSEG_FIXTURES")
    return folder


@pytest.fixture(scope="session")
def golden_dir(fixtures_dir: pathlib.Path) -> pathlib.Path:
    """Outputs of the author's PyTorch code."""
    if not (fixtures_dir / "golden").is_dir():
        pytest.skip(f"no golden/ in {fixtures_dir}")
    return fixtures_dir / "golden"


@pytest.fixture(scope="session")
def camvid_dir(fixtures_dir: pathlib.Path) -> pathlib.Path:
    """CamVid in the SegNet edition."""
    if not (fixtures_dir / "camvid").is_dir():
        pytest.skip(f"no camvid/ in {fixtures_dir}")
    return fixtures_dir / "camvid"


@pytest.fixture(scope="session")
def small_variant() -> variants.Variant:
    """A backbone of five blocks with every kind of layer, so that it compiles in seconds."""
    block = variants.Block
    backbone = variants.Backbone(
        stages=(
            ("stage4", (block(16, stride=2),)),
            ("stage8", (block(32, stride=2),)),
            ("stage16", (block(64, stride=2), block(64, (1, 4)), block(96, (1, 14)))),
        ),
    )
    return variants.Variant("small_decoder26", backbone, "decoder26")


@pytest.fixture(scope="session")
def small_model(small_variant: variants.Variant) -> RegSeg:
    """`small_variant` with 11 classes in float32."""
    return RegSeg(small_variant, num_classes=11)
