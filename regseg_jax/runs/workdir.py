"""A run's folder: the config that it belongs to, and what each start ran on."""

import fcntl
import json
import os
import pathlib
import platform
import sys
from typing import Any

import jax

from regseg_jax.config import Config, flatten_config, unflatten_config
from regseg_jax.models import variants
from regseg_jax.runtime.environment import describe_environment
from regseg_jax.runtime.files import write_json

# What may change between the starts of one run, because it does not change the result; but for
# accumulation_steps, without which a run could not go on with fewer devices.
MAY_CHANGE = (
    *("data.data_dir", "data.num_workers", "data.check", "data.centroid_file", "data.cache_dir"),
    *("log_every_steps", "checkpoint_every_steps", "eval.num_panels", "eval.num_worst"),
    *("accumulation_steps", "eval.batch_size"),
)

# What runs did before there was a key for it, where its default is another thing.
_BEFORE_KEYS = {"search.method": "continuous"}


class WorkdirLock:
    """Holds a workdir for one run at a time, until it is closed or its process ends.

    The lock is the system's (`flock`), so a killed run leaves none behind. It holds between
    machines where their shared file system passes locks on, as NFS and Lustre do by default.

    Args:
      workdir: the run's folder; created if missing.

    Raises:
      ValueError: if another process holds it, or the folder cannot be written to.
    """

    def __init__(self, workdir: str | os.PathLike):
        path = pathlib.Path(workdir) / ".lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+")
        except OSError as error:
            raise ValueError(
                f"cannot write to workdir {workdir}: {error}; choose another"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip()
            self._file.close()
            raise ValueError(
                f"workdir {workdir} is in use by another run ({holder}); wait for it, stop it, or "
                "choose another workdir"
            ) from None
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}\n")
        self._file.flush()

    def close(self) -> None:
        """Lets others have the workdir."""
        self._file.close()


def claim_workdir(config: Config, workdir: str | os.PathLike) -> None:
    """Writes `config.json`, or compares the config with the one that is there.

    Raises:
      ValueError: if the folder cannot be written to, or belongs to a run of another config; names
        each key that differs.
    """
    check_free(config, workdir)
    _warn_of_other_statistics(config, workdir)
    try:
        write_json(pathlib.Path(workdir) / "config.json", _describe(config))
    except OSError as error:
        raise ValueError(f"cannot write to workdir {workdir}: {error}; choose another") from None


def check_free(config: Config, workdir: str | os.PathLike) -> None:
    """Raises ValueError if workdir belongs to a run of another config; names what differs."""
    if (pathlib.Path(workdir) / "config.json").exists():
        check_same_run(config, load_config(workdir), workdir)


def check_same_run(
    config: Config,
    saved: Config,
    workdir: str | os.PathLike,
    ignored: tuple[str, ...] = MAY_CHANGE,
) -> None:
    """Raises ValueError if two configs differ in a key that starts with none of `ignored`."""
    old, new = _describe(saved), _describe(config)
    differences = [
        f"{key} was {old[key]!r} and is {new[key]!r}"
        for key in new
        if old[key] != new[key] and not key.startswith(ignored)
    ]
    if differences:
        raise ValueError(
            f"workdir {workdir} belongs to a run of another config: {'; '.join(differences)}. "
            "Choose another workdir, or the config of that run"
        )


def load_config(workdir: str | os.PathLike) -> Config:
    """Reads the config of a run; keys that an older version did not have are as they would be.

    Raises:
      ValueError: if there is none, or it has keys that no longer exist.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} holds no run: there is no {path}; pass the --workdir of one")
    try:
        return unflatten_config(_BEFORE_KEYS | json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read by this version of regseg_jax: {error}") from None


def record_start(workdir: str | os.PathLike) -> None:
    """Adds what this start runs on (hardware, versions, date, command) to `environment.json`."""
    starts = [*_read_starts(workdir), describe_environment()]
    write_json(pathlib.Path(workdir) / "environment.json", {"starts": starts})


def _read_starts(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    path = pathlib.Path(workdir) / "environment.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    return content.get("starts", [content])  # older versions kept the last start alone


def _warn_of_other_statistics(config: Config, workdir: str | os.PathLike) -> None:
    """Says so if batch norm's statistics are over more or fewer images than at the last start."""
    starts = _read_starts(workdir)
    if not starts or not (pathlib.Path(workdir) / "config.json").exists():
        return
    before = load_config(workdir).images_per_batch_norm(len(starts[-1]["devices"]))
    now = config.images_per_batch_norm(jax.device_count())
    if before != now:
        print(
            f"warning: batch norm's statistics were over {before} images and are over {now} from "
            "here on (config.accumulation_steps, and devices with config.batch_norm_per_device)",
            file=sys.stderr,
        )


def _describe(config: Config) -> dict[str, Any]:
    """`flatten_config`, with the model by its full name: no alias, no path of a file."""
    return flatten_config(config) | {"model": variants.get_variant(config.model).name}
