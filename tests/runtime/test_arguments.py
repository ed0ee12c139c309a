import pytest

from regseg_jax.runtime.arguments import parse_choices, parse_seeds, parse_size


def test_size():
    assert parse_size("720, 960") == (720, 960)


@pytest.mark.parametrize("text", ["1024", "0,8", "-4,8", "4.5,8", "a,b", "1,2,3", ""])
def test_bad_size(text):
    with pytest.raises(ValueError, match=r"--image_size is .* HEIGHT,WIDTH"):
        parse_size(text, "image_size")


def test_seeds():
    assert parse_seeds("3, 0,12") == [3, 0, 12]


@pytest.mark.parametrize("text", ["", "1,", "-1", "a", "1.5"])
def test_bad_seeds(text):
    with pytest.raises(ValueError, match=r"--seeds is .*0,1,2"):
        parse_seeds(text)


def test_choices():
    assert parse_choices("b,a", "backends", ("a", "b")) == ["b", "a"]
    with pytest.raises(ValueError, match=r"--backends has \['c', ''\]; known are a, b"):
        parse_choices("a,c,", "backends", ("a", "b"))
