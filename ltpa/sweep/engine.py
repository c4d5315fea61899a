"""An engine for papermill that starts each kernel with its own environment and log, and reports its process."""

from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine


class KernelEngine(Engine):
    """papermill's own engine, but for environment, log and process number of the kernel."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        source: str,
        environment: Mapping[str, str],
        log: BinaryIO,
        on_start: Callable[[Callable[[], int | None]], object],
        start_timeout: int = 60,
        **_: Any,
    ) -> Any:
        """Execute the cells; `on_start` is called with a function that returns the kernel's process number."""
        nb_man.nb.metadata.papermill["input_path"] = source  # papermill has put the notebook itself there
        client = PapermillNotebookClient(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=None)

        def kernel_id() -> int | None:
            return getattr(getattr(client.km, "provisioner", None), "pid", None)

        on_start(kernel_id)
        return client.execute(env=dict(environment), stderr=log)
