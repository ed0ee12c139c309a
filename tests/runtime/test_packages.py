import pytest

from regseg_jax.runtime.packages import require_packages


def test_packages_that_are_there():
    require_packages("this test", ("json", "numpy"))


@pytest.mark.parametrize(
    ("install", "command"),
    [(None, "pip install no_such"), ("'it[extra]'", r"pip install 'it\[extra\]'")],
)
def test_a_missing_package_is_named_with_its_command(install, command):
    with pytest.raises(ValueError, match=f"--format=x needs no_such, .* {command}$"):
        require_packages("--format=x", ("json", "no_such"), install)
