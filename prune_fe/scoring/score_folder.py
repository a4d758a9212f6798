"""A folder of scores on the disk: of one network on one choice of images, by any number of scorers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prune_fe.errors import CheckpointError, InputError, PruneFEError
from prune_fe.io import explain_disk_errors, lock_folder, write_csv
from prune_fe.records import damaged, read_record, read_sealed, write_record
from prune_fe.scorers.base import Scorer
from prune_fe.scoring.scores import Scores
from prune_fe.scoring.snapshot import PREFIX

REQUEST = "score.json"
"""The file that says what was asked for and where it was computed; it marks a folder of scores."""


@contextmanager
def open_score_folder(
    folder: Path,
    request: Mapping[str, Any],
    scorers: Mapping[str, Scorer],
    environment: Callable[[], Mapping[str, Any]],
    say: Callable[[str], None],
) -> Iterator[None]:
    """Create or continue a folder of scores, locked against other processes while the context is open.

    A new folder is removed again if an error leaves it without scores.

    Args:
        folder: The folder.
        request: What the scores depend on beside the scorers; paths are stored as text.
        scorers: Label -> scorer; their settings are stored when the scores are complete.
        environment: Returns versions and hardware, stored when the scores are complete.
        say: Prints a line for the user.

    Raises:
        InputError: The folder holds scores of another request.
        CheckpointError: The folder's score.json is damaged.
        EnvironmentFault: Another process uses the folder.
    """
    path, is_new = folder / REQUEST, not folder.exists()
    request = {key: str(value) if isinstance(value, Path) else value for key, value in request.items()}
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        try:
            content: dict[str, Any] = {"asked": request, "scorers": {}}
            if any(folder.glob("**/scores.npz")) and path.exists():  # A folder without scores may be begun anew.
                content = _read_request(path)
            _refuse_other_request(folder, content["asked"], request)
            for unfinished in sorted(folder.glob(f"**/{PREFIX}*")):
                say(describe_unfinished(unfinished))
            write_record(path, content)
            yield
        except PruneFEError:
            if is_new and not [entry for entry in folder.iterdir() if entry.name not in (path.name, ".lock")]:
                shutil.rmtree(folder)
            raise
        content["scorers"] |= {label: scorer.settings for label, scorer in scorers.items()}
        write_record(path, content | {"environment": environment()})


def write_image_list(folder: Path, scores: Mapping[str, Scores]) -> None:
    """Write images.csv: the name and class of every image that was read, in a form that `--images` takes."""
    read = next((each.provenance["images"] for each in scores.values() if each.images), None)
    if read:
        write_csv(folder / "images.csv", ({"image": name, "class": label} for name, label in read))


def _read_request(path: Path) -> dict[str, Any]:
    try:
        content = read_record(path)
        if not (isinstance(content.get("asked"), dict) and isinstance(content.get("scorers"), dict)):
            raise damaged(path, "not what prune-fe score writes")
    except CheckpointError as error:
        raise CheckpointError(f"{error}; choose another --output") from error
    return content


def describe_unfinished(path: Path) -> str:
    """Return what happens to the unfinished pass in a file."""
    try:
        read_sealed(path)
    except CheckpointError as error:
        return f"note: {error}; this pass begins again"
    return f"{path.parent} holds an unfinished pass; it is continued if nothing has changed"


def _refuse_other_request(folder: Path, earlier: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    # Flags that came later are entries only where they are given.
    if changed := [key for key in {**request, **earlier} if earlier.get(key) != request.get(key)]:
        changes = ", ".join(f"{key} {earlier.get(key)!r}, now {request.get(key)!r}" for key in changed)
        raise InputError(f"{folder} was begun with another choice of {changes}; choose another --output")
