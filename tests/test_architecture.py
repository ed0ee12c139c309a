"""Who may import whom: read from the source of every module, nothing is imported."""

import ast
import pathlib
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "regseg_jax"


def _module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(source):
    """Full names of all that is imported, also inside functions: `a.b` of `from a import b`."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _project_imports(name):
    """The project's modules that a module imports, without the `regseg_jax.` in front."""
    modules = set()
    for imported in IMPORTS[name]:
        package, _, rest = imported.partition(".")
        if package == PACKAGE.name:
            modules.add(rest if rest in FILES else rest.rpartition(".")[0])
    return modules


def _packages(name):
    """The top-level packages that a module imports, Python's own left out."""
    return {imported.partition(".")[0] for imported in IMPORTS[name]} - sys.stdlib_module_names


def _inside(name, *places):
    return any(name == place or name.startswith(f"{place}.") for place in places)


IMPORTS = {name: _imports(path.read_text()) for name, path in FILES.items()}

# The modules that know nothing of training: what each imports of the project.
LAYERS = {
    "ops": set(),
    "ops.barrier": set(),
    "ops.batch_norm": {"ops.height_shards", "ops.space_to_depth"},
    "ops.continuous_conv": {"ops.height_shards"},
    "ops.conv": {
        *("ops.conv_forms", "ops.height_shards", "ops.lowerings"),
        *("ops.space_to_depth", "ops.space_to_depth_conv"),
    },
    "ops.conv_forms": set(),
    "ops.height_shards": set(),
    "ops.lowerings": set(),
    "ops.platforms": set(),
    "ops.pooled_conv": {
        *("ops.conv", "ops.height_shards", "ops.platforms", "ops.resize"),
        *("ops.space_to_depth", "ops.space_to_depth_conv"),
    },
    "ops.relaxed_conv": {"ops.continuous_conv"},
    "ops.resize": {"ops.height_shards"},
    "ops.sample": set(),
    "ops.scaled_conv": {"ops.conv", "ops.platforms", "ops.space_to_depth"},
    "ops.space_to_depth": {"ops.height_shards"},
    "ops.space_to_depth_conv": {"ops.conv_forms", "ops.space_to_depth"},
    "ops.upsampled_loss": {"ops.barrier", "ops.height_shards", "ops.resize"},
    "models": set(),
    "models.variants": set(),
    "models.folding": {"models.variants"},
    "models.layers": {
        *("models.variants", "ops.barrier", "ops.batch_norm", "ops.conv"),
        *("ops.height_shards", "ops.pooled_conv", "ops.scaled_conv", "ops.space_to_depth"),
    },
    "models.blocks": {"models.layers", "models.variants"},
    "models.backbones": {"models.blocks", "models.variants"},
    "models.decoders": {
        *("models.blocks", "models.layers", "models.variants"),
        *("ops.height_shards", "ops.resize", "ops.sample"),
    },
    "models.regseg": {
        *("models.backbones", "models.blocks", "models.decoders", "models.layers"),
        *("models.variants", "ops.resize"),
    },
    "models.field_of_view": {"models.variants"},
    "models.searched_conv": {
        *("models.blocks", "models.layers", "models.variants"),
        *("ops.continuous_conv", "ops.relaxed_conv"),
    },
    "models.searched_model": {
        *("models.field_of_view", "models.regseg", "models.searched_conv", "models.variants"),
    },
    "training.losses": {"ops.upsampled_loss", "runtime.checks"},
    "training.metrics": set(),
}

# Packages that stay in few places, so that they can be replaced there.
PLACES = {
    "orbax": ("training.checkpoints",),
    "ml_collections": (
        *(
            "config",
            "describe",
            "main",
            "import_torch",
            "pack",
            "runs.train",
            "runs.run",
            "runs.evaluate",
        ),
        *("search.compare", "runtime.recipes"),
        *("benchmark.formats", "benchmark.input", "benchmark.programs"),
        *("benchmark.training_curves", "benchmark.training_ways"),
    ),
    "torch": ("export", "weights.torch_files"),
    "safetensors": ("weights.safetensors_files",),
    "onnx": ("export",),
    "onnxruntime": ("export",),
    "grain": ("data.pipeline",),
    "array_record": ("data.pack", "data.sources.packed"),
    "av": ("prediction.video",),
    "tensorboardX": ("reports.metric_writer",),
    "tensorflow": (),
}

# The rooms and the commands, floor by floor from the ground: nobody imports from a floor above.
FLOORS = (
    ("runtime", "ops"),
    ("data", "models"),
    ("reports", "weights"),
    ("prediction", "training"),
    ("config",),
    ("runs",),
    ("export", "main", "predict", "describe", "import_torch", "pack"),
    ("benchmark",),
    ("search",),  # experiments: commands alone
)


def test_the_reader_sees_every_form_of_import():
    source = "import a.b as c, d\nfrom e.f import g, h as i\ndef f():\n    from j import k\n"
    assert _imports(source) == {"a.b", "d", "e.f.g", "e.f.h", "j.k"}
    assert "models.variants" in _project_imports("models.regseg")  # a module from a package
    assert "models.regseg" in _project_imports("training.train_state")  # a name from a module
    with pytest.raises(AssertionError, match="in full"):
        _imports("from . import a")


@pytest.mark.parametrize("name", [n for n in FILES if n in LAYERS or _inside(n, "models", "ops")])
def test_layers_import_downwards(name):
    assert name in LAYERS, "a new module of models/ or ops/ needs a row in LAYERS"
    assert _project_imports(name) <= LAYERS[name]


def test_the_tables_of_the_models_know_only_python():
    assert not _packages("models.variants")


@pytest.mark.parametrize("name", [name for name in FILES if _inside(name, "data")])
def test_data_knows_neither_models_nor_jax(name):
    assert all(
        _inside(module, "data", "runtime.files", "runtime.checks", "runtime.packages")
        for module in _project_imports(name)
    )
    on_device = ("data.augment", "data.rand_augment", "data.resample")
    accelerated = {"jax"} if name in on_device else set()
    assert _packages(name) & {"jax", "flax", "optax", "clu"} <= accelerated


@pytest.mark.parametrize("package", PLACES)
def test_packages_stay_in_their_places(package):
    importers = {name for name in FILES if package in _packages(name)}
    assert {name for name in importers if not _inside(name, *PLACES[package])} == set()


def test_flags_belong_to_the_commands():
    commands = {name for name, path in FILES.items() if "__main__" in path.read_text()}
    for name in set(FILES) - commands - {"runtime.command", "benchmark.core"}:
        absl = {imported for imported in IMPORTS[name] if _inside(imported, "absl")}
        assert absl <= {"absl.logging"}, name


@pytest.mark.parametrize("name", [name for name in FILES if name])
def test_nobody_imports_from_a_floor_above(name):
    floors = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

    def floor_of(module):
        return floors[module.partition(".")[0]]

    assert [m for m in _project_imports(name) if m and floor_of(m) > floor_of(name)] == []


def test_the_torch_benchmark_needs_torch_alone():
    reached, new = set(), {"export.torch_benchmark"}
    while new:
        reached |= new
        new = {module for name in new for module in _project_imports(name)} - reached
    assert "models.variants" in reached
    assert {package for name in reached for package in _packages(name)} == {"torch", "regseg_jax"}


@pytest.mark.parametrize("name", [name for name in FILES if _inside(name, "weights")])
def test_weights_know_no_runs(name):
    rooms = ("weights", "models", "data.augment", "data.classes", "runtime")
    assert all(_inside(module, *rooms) for module in _project_imports(name))


@pytest.mark.parametrize("name", ["", "models", "weights"])
def test_importing_a_room_costs_nothing(name):
    assert FILES[name].read_text() == ""


def test_no_module_imports_itself_in_a_circle():
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path, name])
        if name in FILES and name not in done:
            path.append(name)
            for imported in _project_imports(name):
                visit(imported)
            done.add(path.pop())

    for name in FILES:
        visit(name)
