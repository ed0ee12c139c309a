"""The models of the paper's tables, a row each (channels, dilation rates, blocks).

Rates and channels: RegSeg (arXiv 2111.09957) sections 3 and 4 and the author's code, whose names
(`exp48`, `decoder26`) are kept so that results can be looked up. Nothing here knows of JAX.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

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
    """A backbone and a decoder: all of a model except its number of classes."""

    name: str
    backbone: Backbone
    decoder: str


STEM_CHANNELS = 32
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_UPDATE = 0.1  # how far running statistics go towards a batch's; PyTorch's momentum

# The dilation rates of the last 13 blocks, table 3 of the paper (v2); the field of view of each row
# is held by tests/models/test_field_of_view.py.
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
    """Looks up `BACKBONE_DECODER`, such as `exp48_decoder26`, an alias, or a variant file.

    `BACKBONE@RATES_DECODER` has other dilation rates in the blocks at 1/16, such as
    `exp48@1-1,2-..._decoder26`: blocks with `-` between them, branches with `,`. A variant that a
    file describes (a path that ends in `.json`, see `load_variant`) has such a name, so that a run
    does not depend on the file.

    Raises:
      ValueError: if there is no such backbone, decoder or file, naming those that there are; or
        if the rates do not fit the backbone.
    """
    if name.endswith(".json"):
        return load_variant(name)
    backbone, _, decoder = ALIASES.get(name, name).partition("_")
    backbone, at, rates = backbone.partition("@")
    if backbone not in BACKBONES or decoder not in DECODERS:
        raise ValueError(
            f"unknown model {name!r}: use BACKBONE_DECODER with a backbone of "
            f"{', '.join(BACKBONES)} and a decoder of {', '.join(DECODERS)}, "
            f"an alias of {', '.join(ALIASES)}, or a path of a variant file that ends in .json"
        )
    if not at:
        return Variant(f"{backbone}_{decoder}", BACKBONES[backbone], decoder)
    try:
        parsed = [[int(rate) for rate in block.split(",")] for block in rates.split("-")]
    except ValueError:
        raise ValueError(
            f"the rates of {name!r} are not integers; write branches with ',' between them "
            "and blocks with '-', such as 1-1,2-1,4"
        ) from None
    return create_variant(backbone, decoder, parsed)


def create_variant(backbone: str, decoder: str, dilation_rates: Sequence[Sequence[int]]) -> Variant:
    """A backbone of the table with other rates in its blocks at 1/16, the strided one left out.

    Raises:
      ValueError: if the rates do not fit the backbone.
    """
    changed = replace_dilation_rates(BACKBONES[backbone], dilation_rates)
    rates = "-".join(",".join(map(str, block)) for block in dilation_rates)
    return Variant(f"{backbone}@{rates}_{decoder}", changed, decoder)


def get_dilation_rates(backbone: Backbone) -> tuple[DilationRates, ...]:
    """The rates of the blocks at 1/16, the strided one left out."""
    strides = _input_strides(backbone)
    blocks = [block for _, stage in backbone.stages for block in stage]
    return tuple(b.dilation_rates for b, s in zip(blocks, strides, strict=True) if s == 16)


def _input_strides(backbone: Backbone) -> list[int]:
    stride, strides = 2, []  # behind the stem
    for block in (block for _, blocks in backbone.stages for block in blocks):
        strides.append(stride)
        stride *= block.stride
    return strides


def replace_dilation_rates(backbone: Backbone, dilation_rates: Sequence[Sequence[int]]) -> Backbone:
    """The backbone with other rates in its blocks at 1/16, the strided one left out.

    Raises:
      ValueError: if there are not as many as such blocks, a rate is not an integer of at least
        1, or a block's channels do not split into this many branches of whole groups.
    """
    expected = len(get_dilation_rates(backbone))
    if len(dilation_rates) != expected:
        raise ValueError(
            f"there are rates for {len(dilation_rates)} blocks, and the backbone has {expected} "
            f"at 1/16; give {expected}"
        )
    strides, rates = iter(_input_strides(backbone)), iter(enumerate(dilation_rates))

    def replace(block: Block) -> Block:
        if next(strides) != 16:
            return block
        i, block_rates = next(rates)
        for rate in block_rates:
            if type(rate) is not int or rate < 1:
                raise ValueError(
                    f"block {i} has the rate {rate!r}; set whole numbers of at least 1"
                )
        branches = len(block_rates)
        groups = block.out_channels // backbone.group_width
        if not branches or groups % branches:
            legal = [str(n) for n in range(1, groups + 1) if groups % n == 0]
            raise ValueError(
                f"block {i} has {branches} rates; its {block.out_channels} channels in groups of "
                f"{backbone.group_width} split into {', '.join(legal)} branches"
            )
        return dataclasses.replace(block, dilation_rates=tuple(block_rates))

    stages = tuple((name, tuple(map(replace, blocks))) for name, blocks in backbone.stages)
    return dataclasses.replace(backbone, stages=stages)


def load_variant(path: str | os.PathLike) -> Variant:
    """Reads a variant file, such as a search writes: a backbone, a decoder and their rates.

    A JSON object of `backbone` and `decoder`, names of the tables, and `dilation_rates`, a list
    of whole numbers for each block at 1/16. `found`, how the rates were found, is not read.

    Raises:
      ValueError: names the file, what is wrong in it and what would be right.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except OSError as error:
        raise ValueError(f"cannot read the variant file {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}; fix it there") from None
    keys = {"backbone", "decoder", "dilation_rates"}
    if not isinstance(content, dict) or content.keys() - {"found"} != keys:
        has = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds {has}; a variant file has {', '.join(sorted(keys))}")
    backbone, decoder, rates = (content[k] for k in ("backbone", "decoder", "dilation_rates"))
    for key, legal in (("backbone", BACKBONES), ("decoder", DECODERS)):
        if not isinstance(content[key], str) or content[key] not in legal:
            raise ValueError(
                f"{path}: the {key} is {content[key]!r}; use one of {', '.join(legal)}"
            )
    if not isinstance(rates, list) or not all(isinstance(block, list) for block in rates):
        raise ValueError(
            f"{path}: dilation_rates is {str(rates)[:80]!r}; write a list of rates for each block, "
            "such as [[1, 2], [1, 4]]"
        )
    try:
        return create_variant(backbone, decoder, rates)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
