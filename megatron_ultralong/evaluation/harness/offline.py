"""An evaluation without a network: local copies of data sets and metrics, and no connection."""

import contextlib
import ipaddress
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from megatron_ultralong.program.errors import InputError
from megatron_ultralong.program.optional import optional_package

WHAT = "evaluate harness"
_FORMATS = ("json", "csv", "parquet", "text", "arrow")
"""What a task with files of its own names instead of a data set."""


class _Network:
    """Refuses connections of Python (not those of ranks) while it is closed."""

    is_closed = False
    is_watched = False

    @classmethod
    def close(cls) -> None:
        """Close it, unless ``HF_HUB_OFFLINE=0`` says that it is wanted."""
        if not cls.is_watched:
            sys.addaudithook(cls._watch)  # for good: there is no way to take one back
        cls.is_watched, cls.is_closed = True, os.environ.get("HF_HUB_OFFLINE") != "0"

    @classmethod
    def _watch(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if not cls.is_closed or event not in ("socket.connect", "socket.getaddrinfo"):
            return
        address = arguments[1] if event == "socket.connect" else arguments
        if isinstance(address, tuple) and not _is_local(address[0]):
            raise InputError(
                f"a task reaches for the network ({address[0]}), and an evaluation does not: put "
                "what it wants on this machine (docs/evaluation.md), or set "
                "HF_HUB_OFFLINE=0 HF_DATASETS_OFFLINE=0"
            )


def _is_local(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost"


@contextlib.contextmanager
def offline(data: str, *, allows_code: bool) -> Iterator[None]:
    """No connection; data sets and metrics come from the folder ``data`` where it has them.

    A metric, which is a Python program, comes from it where ``allows_code``.
    """
    datasets: Any = optional_package("datasets", WHAT)
    metrics: Any = optional_package("evaluate", WHAT)

    def from_folder(load: Callable[..., Any], what: str, kind: str) -> Callable[..., Any]:
        def loaded(path: Any, *arguments: Any, **options: Any) -> Any:
            copy = Path(data or "data") / str(path)
            is_here = bool(data) and copy.is_dir()
            if is_here and kind == "space" and not allows_code:
                raise InputError(
                    f"the metric {path} in --data {data} is Python, which would run as this user: "
                    f"read {copy}, and allow it with --confirm-run-unsafe-code"
                )
            source = copy if is_here else path
            try:
                return load(str(source), *arguments, **options)
            except OSError as error:
                if str(path) in _FORMATS:
                    raise InputError(f"a task's data_files ({path}): {error}") from error
                raise InputError(
                    f"{what} {path} is not on this machine ({error}): copy it, as with `hf "
                    f"download {path} --repo-type {kind} --local-dir {copy}`, and give --data "
                    f"{data or 'data'}"
                ) from error

        return loaded

    _Network.close()
    load_dataset = from_folder(datasets.load_dataset, "data set", "dataset")
    load_metric = from_folder(metrics.load, "metric", "space")
    try:
        with (
            mock.patch.object(datasets, "load_dataset", load_dataset),
            mock.patch.object(metrics, "load", load_metric),
        ):
            yield
    finally:
        _Network.is_closed = False
