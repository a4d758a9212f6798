"""Read the samples of a data set so that every error names the sample."""

from __future__ import annotations

import numbers
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from prune_fe.data.labels import image_names
from prune_fe.errors import DataError, InputError, PruneFEError, describe_error, own_text

DEATH_SECONDS = 5.0
"""Seconds to wait for the end of a process that reads images, after the connection to it broke."""

HINTS = {
    "SIGKILL": ": the memory may have run out; read with fewer workers or a smaller batch size",
    "SIGBUS": ": the shared memory may have run out; enlarge /dev/shm or read with workers=0",
}
"""Name of the signal that killed a process that reads images -> its most frequent cause and what to do."""

_END = object()


class NamedSamples(Dataset[Any]):
    """Another data set's samples; an error while one is read is a DataError that names it.

    Args:
        data: A map-style data set of (image, label), whose samples may have further parts.
        workers: Processes that will read it.
    """

    def __init__(self, data: Dataset[Any], workers: int) -> None:
        self.dataset = data
        # Shared with the workers: the last sample that each has begun to read, to name it if the worker dies.
        self._begun = torch.full((workers,), -1, dtype=torch.int64).share_memory_() if workers else None

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        self._note(index)
        with self._naming(index):
            sample = self.dataset[index]
            if isinstance(sample, tuple | list) and len(sample) > 1:
                check_label(sample[1])
            return sample

    def __getitems__(self, indices: Sequence[int]) -> Any:
        if _reads_batches(self.dataset):
            self._note(indices[0])
            try:
                return self.dataset.__getitems__(indices)  # type: ignore[attr-defined]
            except Exception:  # Read one by one, the sample that is at fault can be named.
                return [self[index] for index in indices]
        return [self[index] for index in indices]

    def _note(self, index: int) -> None:
        worker = get_worker_info()
        if self._begun is not None and worker is not None:
            self._begun[worker.id] = index

    @contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        try:
            yield
        except (PruneFEError, MemoryError):
            raise
        except Exception as error:  # A data set's own code raises anything.
            raise DataError(f"image {self._name(index)}: it cannot be read ({describe_error(error)})") from error

    def _name(self, index: int) -> str:
        return image_names(self.dataset, [index])[0]

    def describe_begun(self) -> str:
        """Return which samples the workers have begun to read last."""
        begun = [] if self._begun is None else [index for index in self._begun.tolist() if index >= 0]
        return "an image" if not begun else f"image {' or '.join(map(self._name, begun))}"


def _reads_batches(data: Any) -> bool:
    """Return whether a data set has a way of its own to read several samples."""
    while isinstance(data, Subset):
        data = data.dataset
    return callable(getattr(data, "__getitems__", None))


def check_label(label: Any) -> None:
    """Raise TypeError or ValueError unless a label is a whole number."""
    if isinstance(label, Tensor):
        if label.ndim or label.is_floating_point() or label.is_complex():
            raise TypeError(f"its label is {label.dtype} {tuple(label.shape)}; it must be a whole number")
    elif not isinstance(label, numbers.Integral):
        raise TypeError(f"its label is {str(label)[:40]!r}, a {type(label).__name__}; it must be a whole number")
    elif not -(2**63) <= int(label) < 2**63:
        raise ValueError(f"its label is {str(label)[:20]}…, beyond 64 bits")


def read_batches(start: Callable[[], Iterator[Any]], samples: Any) -> Iterator[Any]:
    """Yield the batches of a DataLoader; raise DataError in place of a later one if a process that reads images dies.

    Args:
        start: Begins an iteration over the loader.
        samples: The loader's data set.

    Raises:
        DataError: A process that reads images has died; or see `NamedSamples`.
        InputError: The data set cannot be sent to these processes.
    """
    with explain_worker_errors(samples):
        batches = start()
        workers = Workers(batches)
        workers.watch(False)
    try:
        while True:
            with explain_worker_errors(samples, workers.processes), workers.watched():
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch
    finally:
        if not isinstance(samples, NamedSamples):  # A user's loader is left as it was.
            workers.watch(True)


class Workers:
    """The processes that read images for an iteration over a DataLoader.

    torch has a signal handler that raises a RuntimeError when one of them dies, in whatever code is running. If that is
    the forward pass of a network, the network seems to be at fault. So `read_batches` switches this on only while it
    waits for a batch.

    Args:
        batches: The iterator; one that is not torch's own has no processes that are known.

    Attributes:
        processes: The processes.
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches if isinstance(batches, _MultiProcessingDataLoaderIter) else None
        self.processes: Sequence[BaseProcess] = () if self._batches is None else self._batches._workers

    def watch(self, wanted: bool) -> None:
        """Switch on or off that torch's signal handler raises a RuntimeError when a process dies.

        Args:
            wanted: True switches it on.
        """
        batches = self._batches
        if batches is None or batches._shutdown or batches._worker_pids_set == wanted:
            return
        if wanted:
            signal_handling._set_worker_pids(id(batches), tuple(each.pid for each in batches._workers))  # type: ignore[misc]
        else:
            signal_handling._remove_worker_pids(id(batches))
        batches._worker_pids_set = wanted

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Switch `watch` on for the block.

        Raises:
            RuntimeError: A process has died before.
        """
        self.watch(True)
        try:
            if any(process.exitcode for process in self.processes):
                raise RuntimeError("a DataLoader worker has died")
            yield
        finally:
            self.watch(False)


@contextmanager
def explain_worker_errors(samples: Any, workers: Sequence[BaseProcess] | None = None) -> Iterator[None]:
    """Turn what a DataLoader raises, about itself or in a process that reads images, into errors of one line.

    Args:
        samples: The loader's data set.
        workers: The processes that read images, if they are known.
    """
    try:
        yield
    except PruneFEError as error:
        if (text := own_text(error)) == str(error):
            raise
        raise type(error)(text) from None
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        if "pickle" not in str(error).lower():
            raise
        raise InputError(
            f"the data set cannot be sent to the processes that read images ({describe_error(error)}); use workers=0"
        ) from error
    except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
        reason = _describe_death(error, workers)
        if reason is None:
            raise
        begun = samples.describe_begun() if isinstance(samples, NamedSamples) else "an image"
        raise DataError(f"{begun}: a process that reads images has died ({reason})") from error


def _describe_death(error: Exception, workers: Sequence[BaseProcess] | None) -> str | None:
    """Return how a process that reads images has died, or None if an error has another cause.

    Args:
        error: What a DataLoader has raised: that a process has died, or that a connection broke. The latter comes
            first if a process dies while it hands over a batch.
        workers: The processes, if they are known.
    """
    text = str(error)
    is_death = "DataLoader worker" in text or "Pin memory thread" in text
    if "Original Traceback" in text or (isinstance(error, RuntimeError) and not is_death):
        return None  # of the data set, in a process that lives, or of something else
    if workers is None:
        return describe_error(error) if is_death else None
    alive = [worker for worker in workers if worker.exitcode is None]
    if alive and not any(worker.exitcode for worker in workers):
        closed = wait([worker.sentinel for worker in alive], DEATH_SECONDS)
        for worker in alive:
            if worker.sentinel in closed:
                worker.join()  # Its sentinel is closed a moment before it has ended.
    codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
    code = next(filter(None, codes), 0)  # Those that had nothing more to read have ended with 0.
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"killed by {name}{HINTS.get(name, '')}"
    return f"exit code {code}" if code or (codes and is_death) else None
