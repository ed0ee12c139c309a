"""What all tests use: simulated devices, a compilation cache, optional fixtures, a small model."""

import os
import pathlib
from collections.abc import Iterator

# Before JAX starts: 8 devices on the CPU, so that sharding is tested anywhere.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The same operations, compiled in half the time; "0" tests what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# PyTorch's threads and JAX's on few cores wait for each other for seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = pathlib.Path(__file__).parents[1]
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))

import jax
import pytest
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from regseg_jax.models import variants
from regseg_jax.models.regseg import RegSeg

# Grain's worker processes read absl's flags.
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def expects_fixtures() -> bool:
    """Whether a test that lacks them fails by default."""
    if "REGSEG_FIXTURES" in os.environ:
        return True
    return bool(os.environ.get("CI")) and (ROOT.parent / "shared").is_dir()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also the tests that take minutes")
    parser.addoption(
        "--expect-fixtures",
        action="store_true",
        default=expects_fixtures(),
        help="fail where a test would be skipped for want of REGSEG_FIXTURES; the default where "
        "that is set, and where CI is and ../shared exists",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; needs --run-slow")


# Files that take minutes come first, so that no worker is left alone with one at the end.
LONGEST_FILES = (
    *("test_train.py", "test_parity.py", "test_steps.py", "test_end_to_end.py"),
    "test_benchmark.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST_FILES)
    if not config.getoption("--run-slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; use --run-slow"))


def find_fixtures(config: pytest.Config, name: str) -> pathlib.Path:
    """A folder of data that is not part of the project; without it, the test is skipped or, with
    --expect-fixtures, fails.
    """
    fixtures = pathlib.Path(os.environ.get("REGSEG_FIXTURES", ROOT.parent / "shared"))
    if not (fixtures / name).is_dir():
        say = pytest.fail if config.getoption("--expect-fixtures") else pytest.skip
        say(f"there is no {fixtures / name}; set REGSEG_FIXTURES to the folder that holds {name}/")
    return fixtures / name


@pytest.fixture(scope="session")
def full_golden_dir(pytestconfig: pytest.Config) -> pathlib.Path:
    """The author's outputs that tests/golden was distilled from."""
    return find_fixtures(pytestconfig, "golden")


@pytest.fixture(scope="session")
def camvid_dir(pytestconfig: pytest.Config) -> pathlib.Path:
    """CamVid in the SegNet edition."""
    return find_fixtures(pytestconfig, "camvid")


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


@pytest.fixture
def without_compilation_cache() -> Iterator[None]:
    """Programs for devices that are not here can be written to the cache, but not read from it."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()
