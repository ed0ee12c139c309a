"""The models of the paper's tables, a row each (channels, dilation rates, blocks).

Rates and channels: RegSeg (arXiv 2111.09957) sections 3 and 4 and the author's code, whose names
(`exp48`, `decoder26`) are kept so that results can be looked up. Nothing here knows of JAX.
"""

import dataclasses

DilationRates = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Block:
    """One D block: its output channels, the rate of each of its branches, its stride."""

    out_channels: int
    dilation_rates: DilationRates = (1,)
    stride: int = 1


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The blocks behind the stem, stage by stage, in order.

    Attributes:
      stages: (name, blocks) pairs; the names are the author's. `stage4` ends at stride 4,
        `stage8` at 8, every later stage at 16.
      group_width: channels in a group of the 3x3 convolutions.
      pool_in_shortcut: whether a strided shortcut averages 2x2 pixels before its 1x1
        convolution (D block) or the convolution itself is strided (RegNet's Y block).
    """

    stages: tuple[tuple[str, tuple[Block, ...]], ...]
    group_width: int = 16
    pool_in_shortcut: bool = True


@dataclasses.dataclass(frozen=True)
class Variant:
    """A backbone and a decoder: all that a model is, but for its number of classes."""

    name: str
    backbone: Backbone
    decoder: str


STEM_CHANNELS = 32

# The rates of the last 13 blocks, table 3 of the paper (v2); the field of view of each row is
# held by tests/test_field_of_view.py.
_REGSEG = ((1,), (1, 2)) + 4 * ((1, 4),) + 7 * ((1, 14),)
_GROWING = ((1,), (1, 2), (1, 4), (1, 6), (1, 8), (1, 10))
DILATION_RATES: dict[str, tuple[DilationRates, ...]] = {
    "exp30": 5 * ((1, 4),) + 8 * ((1, 10),),
    "exp43": _GROWING + 7 * ((1, 12),),
    "exp46": _GROWING[:5] + 8 * ((1, 10),),
    "exp47": (*_GROWING, (1, 12)) + 6 * ((1, 14),),
    "exp48": _REGSEG,
    "exp49": ((1,), (1, 2)) + 6 * ((1, 4),) + 5 * ((1, 6, 12, 18),),
    "exp50": _GROWING + 7 * ((1, 3, 6, 12),),
    "exp51": _GROWING + 7 * ((1, 4, 8, 12),),
    "exp52": ((1,), (1, 2), (1, 4)) + 10 * ((1, 6),),
    # What the search of the paper's third version found, as an independent reimplementation
    # gives it; not confirmed by the author.
    "searched": (
        *((1, 1), (1, 2), (1, 2), (1, 3), (2, 3), (2, 7), (2, 3)),
        *((2, 6), (2, 5), (2, 9), (2, 11), (4, 7), (5, 14)),
    ),
}


def create_regseg_backbone(dilation_rates: tuple[DilationRates, ...]) -> Backbone:
    """RegSeg's backbone with the rates of its 13 dilated blocks at 1/16 (paper, table 2)."""
    return Backbone(
        stages=(
            ("stage4", (Block(48, stride=2),)),
            ("stage8", (Block(128, stride=2), Block(128), Block(128))),
            (
                "stage16",
                (
                    Block(256, stride=2),
                    *(Block(256, rates) for rates in dilation_rates[:-1]),
                    Block(320, dilation_rates[-1]),
                ),
            ),
        )
    )


_EXP53 = Backbone(
    stages=(
        ("stage4", (Block(48, stride=2), Block(48))),
        ("stage8", (Block(120, stride=2), *5 * (Block(120),))),
        (
            "stage16",
            (
                Block(336, stride=2),
                *(Block(336, rates) for rates in _REGSEG[:-1]),
                Block(384, _REGSEG[-1]),
            ),
        ),
    ),
    group_width=24,
)

# RegNetY-600MF with its last stage dilated instead of strided; the author calls that stage 32.
_REGNETY_600MF = Backbone(
    stages=(
        ("stage4", (Block(48, stride=2),)),
        ("stage8", (Block(112, stride=2), *2 * (Block(112),))),
        ("stage16", (Block(256, stride=2), *6 * (Block(256),))),
        ("stage32", (Block(608), *3 * (Block(608, (2,)),))),
    ),
    pool_in_shortcut=False,
)

BACKBONES: dict[str, Backbone] = {
    **{name: create_regseg_backbone(rates) for name, rates in DILATION_RATES.items()},
    "exp53": _EXP53,
    "regnety600mf": _REGNETY_600MF,
}

DECODERS = (
    "decoder4",
    "decoder10",
    "decoder12",
    "decoder14",
    "decoder26",
    "decoder29",
    "lraspp",
    "BisenetDecoder",
    "SFNetDecoder",
)

ALIASES = {"regseg": "exp48_decoder26", "regseg_large": "exp53_decoder29"}


def get_variant(name: str) -> Variant:
    """Looks up `BACKBONE_DECODER`, such as `exp48_decoder26`, or an alias.

    Raises:
      ValueError: if there is no such backbone or decoder; names those that there are.
    """
    backbone, _, decoder = ALIASES.get(name, name).partition("_")
    if backbone not in BACKBONES or decoder not in DECODERS:
        raise ValueError(
            f"unknown model {name!r}: use BACKBONE_DECODER with a backbone of "
            f"{', '.join(BACKBONES)} and a decoder of {', '.join(DECODERS)}, "
            f"or an alias of {', '.join(ALIASES)}"
        )
    return Variant(name=f"{backbone}_{decoder}", backbone=BACKBONES[backbone], decoder=decoder)
