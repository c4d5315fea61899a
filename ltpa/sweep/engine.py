"""An engine for papermill that keeps what the kernel itself prints, and lets a sweep end the kernel."""

from collections.abc import Callable
from typing import Any, BinaryIO

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine


class KernelEngine(Engine):
    """papermill's own engine, but for the log of the kernel and the number of its process."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        source: str,
        log: BinaryIO,
        on_start: Callable[[Callable[[], int | None]], object],
        start_timeout: int = 60,
        **_: Any,
    ) -> Any:
        """Execute the cells; `on_start` is called with a function that returns the kernel's process number."""
        nb_man.nb.metadata.papermill["input_path"] = source  # papermill has put the notebook itself there
        client = PapermillNotebookClient(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=None)
        on_start(lambda: getattr(getattr(client.km, "provisioner", None), "pid", None))
        return client.execute(stderr=log)
