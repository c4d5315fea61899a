"""Google Colab takes its machines away: here `runs/` moves to Google Drive, which stays."""

import os
from pathlib import Path

MOUNT = Path("/content/drive")
FOLDER = "MyDrive/ltpa/runs"  # on the drive


def runs_on_drive(project: Path) -> Path:
    """Mount Google Drive, make `project/runs` a link to `MyDrive/ltpa/runs`, and return the folder on the drive.

    A link, so that no other code needs to know: where the drive vanishes, writing through it fails and makes no folder.
    """
    try:
        from google.colab import drive
    except ImportError as error:
        raise ValueError(
            f"runs_on_drive=True works in Google Colab only; set it to False: the runs are then in {project / 'runs'}"
        ) from error
    link, target = project / "runs", MOUNT / FOLDER
    if not link.is_symlink() and link.is_dir():
        if any(path.name != ".gitkeep" for path in link.iterdir()):
            raise ValueError(
                f"{link} holds runs of this machine, which would be hidden. Rename it ('!mv {link} {link}_before'; its "
                "runs can be copied to the drive later), or set runs_on_drive=False"
            )
        (link / ".gitkeep").unlink(missing_ok=True)
        link.rmdir()
    try:
        if not _mounted():
            drive.mount(str(MOUNT), force_remount=True)
    except Exception as error:  # Colab raises its own kinds
        raise OSError(_advice(f"was not mounted ({error})")) from error
    if not _mounted():  # what is written below an empty mount point vanishes with the machine
        raise OSError(_advice(f"is not at {MOUNT}"))
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, _advice(f"cannot be written ({error.strerror})")) from error
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target)
    return target


def _mounted() -> bool:
    """Whether the drive answers; one that vanished does not, though its mount point exists."""
    try:
        os.listdir(MOUNT / "MyDrive")
    except OSError:
        return False
    return True


def _advice(problem: str) -> str:
    return (
        f"Google Drive {problem}. Run the cell again and allow the access that Colab asks for, or set "
        "runs_on_drive=False: the runs then stay on this machine, which Colab deletes after a few hours"
    )
