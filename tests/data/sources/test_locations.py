import pytest

from regseg_jax.data.sources.locations import find_data_dir


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)
    monkeypatch.delenv("CAMVID_DATASET", raising=False)
    for folder in ("data/cityscapes/leftImg8bit", "named/leftImg8bit", "variable/leftImg8bit"):
        (tmp_path / folder).mkdir(parents=True)


def test_the_config_goes_before_the_environment_and_that_before_the_default(monkeypatch):
    assert find_data_dir("cityscapes", "") == "data/cityscapes"
    monkeypatch.setenv("CITYSCAPES_DATASET", "variable")
    assert find_data_dir("cityscapes", "") == "variable"
    assert find_data_dir("cityscapes", "named") == "named"


def test_no_cityscapes_says_how_to_get_it(monkeypatch, tmp_path):
    (tmp_path / "data/cityscapes/leftImg8bit").rmdir()
    with pytest.raises(ValueError, match=r"data/cityscapes \(neither config") as error:
        find_data_dir("cityscapes", "")
    for part in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip", "csDownload", "unpack"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"no cityscapes data set in gone \(config\.data"):
        find_data_dir("cityscapes", "gone")
    monkeypatch.setenv("CITYSCAPES_DATASET", "away")
    with pytest.raises(ValueError, match=r"in away \(\$CITYSCAPES_DATASET\)"):
        find_data_dir("cityscapes", "")


def test_camvid_and_data_sets_without_a_place_of_their_own(tmp_path):
    with pytest.raises(ValueError, match=r"data/camvid .*\$CAMVID_DATASET.*train/ and trainannot/"):
        find_data_dir("camvid", "")
    (tmp_path / "data/camvid/test").mkdir(parents=True)
    assert find_data_dir("camvid", "") == "data/camvid"
    assert find_data_dir("folder", "mine") == "mine"
    with pytest.raises(ValueError, match=r"data_dir is empty; add .*holds the folder data set"):
        find_data_dir("folder", "")
