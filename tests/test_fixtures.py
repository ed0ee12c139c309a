"""The skip for data that is not part of the project becomes a failure where it is expected."""

import pathlib

import pytest


@pytest.fixture
def conftest(pytestconfig: pytest.Config):
    return pytestconfig.pluginmanager.get_plugin(str(pathlib.Path(__file__).parent / "conftest.py"))


@pytest.mark.parametrize(
    ("expected", "outcome"), [(True, pytest.fail.Exception), (False, pytest.skip.Exception)]
)
def test_missing_data(expected, outcome, conftest, pytestconfig, monkeypatch, tmp_path):
    monkeypatch.setenv("REGSEG_FIXTURES", str(tmp_path))
    monkeypatch.setattr(pytestconfig.option, "expect_fixtures", expected)
    with pytest.raises(outcome, match="camvid; set REGSEG_FIXTURES"):
        conftest.find_fixtures(pytestconfig, "camvid")


def test_they_are_expected_where_the_variable_is_set_and_in_ci(conftest, monkeypatch, tmp_path):
    monkeypatch.setattr(conftest, "ROOT", tmp_path / "project")
    monkeypatch.delenv("REGSEG_FIXTURES", raising=False)
    monkeypatch.setenv("CI", "true")
    assert not conftest.expects_fixtures()
    (tmp_path / "shared").mkdir()
    assert conftest.expects_fixtures()
    monkeypatch.delenv("CI")
    assert not conftest.expects_fixtures()
    monkeypatch.setenv("REGSEG_FIXTURES", str(tmp_path / "elsewhere"))
    assert conftest.expects_fixtures()
