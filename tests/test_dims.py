"""The alphabet, and dims read off names."""

import pytest

from scaling_lab import dims


@pytest.mark.parametrize(
    ("name", "letters", "stem"),
    [
        ("gate_LDF", "LDF", "gate"),
        ("attention_norm_D", "D", "attention_norm"),
        ("scores_BNTS", "BNTS", "scores"),
        ("step_", "", "step"),
    ],
)
def test_a_name_ends_in_its_dims(name, letters, stem):
    assert dims.letters(name) == letters
    assert dims.stem(name) == stem


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gate", "'gate' carries no dims; an array's name ends in them, as 'gate_DF'"),
        ("_DF", "carries no dims"),
        ("gate_DX", r"'gate_DX' ends in unknown dim\(s\) \['X'\]; the alphabet is BTS"),
        ("gate_norm", r"unknown dim\(s\) \['n', 'o', 'r', 'm'\]"),
        ("gate_DD", "'gate_DD' has a dim twice; each letter names one dim"),
    ],
)
def test_refused_names(name, said):
    for read in (dims.letters, dims.stem, dims.stacked):
        with pytest.raises(ValueError, match=said):
            read(name)


def test_every_dim_has_a_letter():
    assert dims.check("gate_LDF", (2, 3, 4)) == "LDF"
    assert dims.check("step_", ()) == ""
    for shape in ((3, 4), (2, 3, 4, 5), ()):
        with pytest.raises(ValueError, match=r"names 3 dim\(s\) 'LDF' but the array"):
            dims.check("gate_LDF", shape)


def test_stacking_names():
    assert dims.stacked("gate_DF") == "gate_LDF"
    assert dims.unstacked("gate_LDF") == "gate_DF"
    assert dims.stacked("scale_") == "scale_L"
    with pytest.raises(ValueError, match="dim twice"):
        dims.letters(dims.stacked("gate_LDF"))
    with pytest.raises(ValueError, match="'gate_DF' is not stacked over layers"):
        dims.unstacked("gate_DF")


def test_leaves_are_paths():
    nested = {"embed_VD": 1, "layers": {"gate_LDF": 2, "more": {"up_LDF": 3}}, "a_": {}}
    assert dims.leaves(nested) == {
        "embed_VD": 1,
        "layers/gate_LDF": 2,
        "layers/more/up_LDF": 3,
    }


def test_one_letter_one_meaning():
    assert all(len(letter) == 1 for letter in dims.ALPHABET)
    assert len(set(dims.ALPHABET.values())) == len(dims.ALPHABET)
    assert len(set(dims.AXES)) == len(dims.AXES)
