"""The class tables: names, colours and raw label values, one row per class."""

import dataclasses
from collections.abc import Sequence

# The two values of 8-bit labels that are not training ids.
IGNORE_LABEL = 255  # neither trained on nor scored
UNKNOWN_LABEL = 254  # while decoding: a value that the class table does not know
_MAX_CLASSES = UNKNOWN_LABEL
_MAX_LABEL_ID = 2**24 - 1  # a table of all values up to the largest stays small


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, in the order of their training ids.

    Attributes:
      name: what the table is called in configs and messages.
      class_names: a name for each training id.
      colors: an RGB triple in [0, 255] for each training id: the pictures' colours, and
        the labels' where the data set stores labels as colours.
      label_ids: for each training id its raw value in label files of one channel.
      ignored_label_ids: raw values that are legal and ignored. Any other value is an error.
      ignored_colors: the same for labels stored as colours.
      reduced_without: training ids that the reduced mean IoU leaves out; (): there is none.
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    label_ids: tuple[int, ...]
    ignored_label_ids: tuple[int, ...] = (IGNORE_LABEL,)
    ignored_colors: tuple[tuple[int, int, int], ...] = ()
    reduced_without: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError if a value has two meanings."""
        for what, values in (
            ("class name", self.class_names),
            ("colour", self.colors + self.ignored_colors),
            ("label id", self.label_ids + self.ignored_label_ids),
        ):
            if twice := sorted(value for value in set(values) if values.count(value) > 1):
                raise ValueError(
                    f"the class table {self.name!r} has the {what} {twice[0]!r} twice; "
                    "give it one meaning"
                )
        if not 1 <= self.num_classes <= _MAX_CLASSES:
            raise ValueError(
                f"the class table {self.name!r} has {self.num_classes} classes; "
                f"give 1 to {_MAX_CLASSES}"
            )

    @property
    def num_classes(self) -> int:
        """The number of classes that are trained and scored."""
        return len(self.class_names)


def create_class_table(
    name: str,
    rows: Sequence[tuple[int, str, Sequence[int], int]],
    ignored_label_ids: Sequence[int] = (IGNORE_LABEL,),
    ignored_colors: Sequence[Sequence[int]] = (),
) -> ClassTable:
    """A table from a config's rows.

    Args:
      name: see `ClassTable`.
      rows: (training id, name, (red, green, blue), raw label id) for each class, in any order.
      ignored_label_ids: see `ClassTable`.
      ignored_colors: see `ClassTable`.

    Raises:
      ValueError: names the malformed row or ignored value, the gap in the training ids, or
        what is there twice.
    """
    for value in ignored_label_ids:
        if not _is_label_id(value):
            raise ValueError(
                f"the class table {name!r} ignores the label id {value!r}; write whole numbers "
                f"from 0 to {_MAX_LABEL_ID}, as label files hold"
            )
    for color in ignored_colors:
        if not _is_color(color):
            raise ValueError(
                f"the class table {name!r} ignores the colour {color!r}; write three whole numbers "
                "from 0 to 255"
            )
    for row in rows:
        if not _is_row(row):
            raise ValueError(
                f"the class table {name!r} has the row {row!r}; write (training id, name, "
                "(red, green, blue), label id), the colour of whole numbers from 0 to 255, the id "
                f"from 0 to {_MAX_LABEL_ID}"
            )
    rows = sorted(rows)
    train_ids = [row[0] for row in rows]
    for expected, train_id in enumerate(train_ids):
        if train_id != expected:
            fault = "twice" if train_id in train_ids[:expected] else f"but not {expected}"
            raise ValueError(
                f"the class table {name!r} has the training id {train_id} {fault}; "
                f"number its {len(rows)} classes from 0 to {len(rows) - 1}, each once"
            )
    return ClassTable(
        name=name,
        class_names=tuple(row[1] for row in rows),
        colors=tuple(tuple(row[2]) for row in rows),
        label_ids=tuple(row[3] for row in rows),
        ignored_label_ids=tuple(ignored_label_ids),
        ignored_colors=tuple(tuple(color) for color in ignored_colors),
    )


def _is_row(row: object) -> bool:
    match row:
        case [int(), str(), color, int(label_id)]:
            return _is_label_id(label_id) and _is_color(color)
    return False


def _is_label_id(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= _MAX_LABEL_ID


def _is_color(value: object) -> bool:
    match value:
        case [int(), int(), int()]:
            return all(0 <= channel <= 255 for channel in value)
    return False


# Name, colour, and value in the SegNet edition's label files. The order of the training ids is
# that of the 720 x 960 protocol, so that a run trained on one edition reads the other.
_CAMVID = (
    ("building", (128, 0, 0), 1),
    ("tree", (128, 128, 0), 5),
    ("sky", (128, 128, 128), 0),
    ("car", (64, 0, 128), 8),
    ("sign", (192, 128, 128), 6),
    ("road", (128, 64, 128), 3),
    ("pedestrian", (64, 64, 0), 9),
    ("fence", (64, 64, 128), 7),
    ("pole", (192, 192, 128), 2),
    ("sidewalk", (0, 0, 192), 4),
    ("bicyclist", (0, 128, 192), 10),
)

# The 21 colours of CamVid's 32 classes that the 11-class protocol ignores.
_CAMVID_IGNORED_COLORS = (
    (64, 128, 64),  # animal
    (192, 0, 128),  # archway
    (0, 128, 64),  # bridge
    (64, 0, 192),  # cart, luggage, pram
    (192, 128, 64),  # child
    (128, 0, 192),  # lane marking, drivable
    (192, 0, 64),  # lane marking, not drivable
    (128, 128, 64),  # miscellaneous text
    (192, 0, 192),  # motorcycle, scooter
    (128, 64, 64),  # other moving
    (64, 192, 128),  # parking block
    (128, 128, 192),  # road shoulder
    (64, 128, 192),  # SUV, pickup truck
    (0, 0, 64),  # traffic cone
    (0, 64, 64),  # traffic light
    (192, 64, 128),  # train
    (192, 128, 192),  # truck, bus
    (64, 0, 64),  # tunnel
    (192, 192, 0),  # other vegetation
    (0, 0, 0),  # void
    (64, 192, 0),  # wall
)

CAMVID = ClassTable(
    name="camvid",
    class_names=tuple(name for name, _, _ in _CAMVID),
    colors=tuple(color for _, color, _ in _CAMVID),
    label_ids=tuple(label_id for _, _, label_id in _CAMVID),
    ignored_label_ids=(11, IGNORE_LABEL),
    ignored_colors=_CAMVID_IGNORED_COLORS,
)

# Name, colour, and the value in `*_gtFine_labelIds.png`, in the order of the official training ids.
_CITYSCAPES = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)

CITYSCAPES = ClassTable(
    name="cityscapes",
    class_names=tuple(name for name, _, _ in _CITYSCAPES),
    colors=tuple(color for _, color, _ in _CITYSCAPES),
    label_ids=tuple(label_id for _, _, label_id in _CITYSCAPES),
    # The data set's other labels; -1, the license plate, is 255 in files of 8 bits.
    ignored_label_ids=(*range(7), 9, 10, 14, 15, 16, 18, 29, 30, IGNORE_LABEL),
    reduced_without=(14, 15, 16),  # truck, bus, train: rare, so noisy (paper, section 4.2)
)
