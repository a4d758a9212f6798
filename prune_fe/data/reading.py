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

from prune_fe.data.labels import image_names
from prune_fe.errors import DataError, InputError, PruneFEError, describe_error, own_text

DEATH_SECONDS = 5.0
"""How long a process that reads images may take to end after it has broken the connection."""

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
    """Yield what a DataLoader reads, with errors of one line.

    The death of a process that reads images is an error of the next batch. torch raises it from a signal handler,
    in whatever code is running: a network that runs on the batch before would seem to be at fault.

    Args:
        start: Begins an iteration over the loader.
        samples: The loader's data set.

    Raises:
        DataError: A process that reads images has died; or see `NamedSamples`.
        InputError: The data set cannot be sent to these processes.
    """
    with explain_worker_errors(samples):
        batches = start()
    # Without its processes' numbers, torch's signal handler takes no notice of them; the wait for a batch does.
    if getattr(batches, "_worker_pids_set", False):
        torch._C._remove_worker_pids(id(batches))  # type: ignore[attr-defined]
        batches._worker_pids_set = False  # type: ignore[attr-defined]
    while True:
        with explain_worker_errors(samples, getattr(batches, "_workers", ())):
            batch = next(batches, _END)
        if batch is _END:
            return
        yield batch


@contextmanager
def explain_worker_errors(samples: Any, workers: Sequence[BaseProcess] = ()) -> Iterator[None]:
    """Turn what a DataLoader raises, about itself or in a process that reads images, into errors of one line.

    Args:
        samples: The loader's data set.
        workers: The processes that read images, where they are known.
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
    except (RuntimeError, OSError, EOFError) as error:
        if "Original Traceback" in str(error):  # the data set's own error, in a process that lives
            raise
        is_told = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
        # A process that dies while it hands over a batch breaks the connection before it counts as dead.
        is_cut_off = not isinstance(error, RuntimeError) and wait([worker.sentinel for worker in workers], DEATH_SECONDS)
        if not is_told and not is_cut_off:
            raise
        begun = samples.describe_begun() if isinstance(samples, NamedSamples) else "an image"
        reason = _describe_death(workers) or describe_error(error)
        raise DataError(f"{begun}: a process that reads images has died ({reason})") from error


def _describe_death(workers: Sequence[BaseProcess]) -> str | None:
    """Return how the first of the processes that are dead has ended, or None if all are alive."""
    code = next((worker.exitcode for worker in workers if worker.exitcode is not None), None)
    if code is None or code >= 0:
        return None if code is None else f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hints = {
        "SIGKILL": ": the memory may have run out; read with fewer workers or a smaller batch size",
        "SIGBUS": ": the shared memory may have run out; enlarge /dev/shm or read with workers=0",
    }
    return f"killed by {name}{hints.get(name, '')}"
