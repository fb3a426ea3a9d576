"""Kernels that execute notebooks: each with an environment of its own, and one for all notebooks of a run.

Starting a kernel and importing torch, pandas and matplotlib takes several seconds, so a run starts a single kernel and
empties it before each further notebook. A kernel is always this environment's interpreter, whatever kernels Jupyter has
been told of, and reads no startup files of the user.
"""

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

#: `device.keep_memory` as the environment of a process that is yet to start
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_TOP_PAD_": str(2**26)}
#: every kernel is started with these
OPTIONS: dict[str, Any] = {
    "kernel_name": "python3",
    "coalesce_streams": True,
    "startup_timeout": 300,  # a busy machine
    "config": Config(KernelManager={"transport_encryption": "auto"}),
}
#: characters in the path of a socket, less than on any system (104 on macOS), without the number at its end
LONGEST_SOCKET = 95
#: code that leaves a kernel as it started, except for imported modules; IPython counts the cells from 1 again
RESET = """
import sys, warnings
if "matplotlib.pyplot" in sys.modules:
    sys.modules["matplotlib.pyplot"].close("all")
    sys.modules["matplotlib"].rcdefaults()
if "pandas" in sys.modules:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that pandas is about to drop
        sys.modules["pandas"].reset_option("all")
get_ipython().reset(new_session=True)
"""


class OwnInterpreter(KernelSpecManager):
    """Knows one kernel, under every name: the interpreter of this process."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Return the kernel of this environment."""
        return KernelSpec(**get_kernel_dict())  # its command begins with `sys.executable`


def own_kernel_manager(folder: str) -> AsyncKernelManager:
    """Return a manager that starts this environment's interpreter as a kernel, reached through sockets in a folder.

    Network ports, Jupyter's default, are chosen before the kernel starts: by then another process may have taken them,
    and the kernel dies. They are used where the folder's path is too long for a socket, and on Windows.
    """
    options, address = (
        {"kernel_name": OPTIONS["kernel_name"], "config": OPTIONS["config"]},
        os.path.join(folder, "kernel"),
    )
    if os.name == "posix" and len(os.fsencode(address)) < LONGEST_SOCKET:
        options |= {"transport": "ipc", "ip": address}
    return AsyncKernelManager(kernel_spec_manager=OwnInterpreter(), **options)


def new_client(book: nbformat.NotebookNode, folder: str, **options) -> NotebookClient:
    """Return a client for this notebook whose kernel, once it is started, is this environment's interpreter.

    Args:
        book: the notebook.
        folder: for the kernel's sockets; it has to stay as long as the kernel.
        options: of `NotebookClient`, beside `OPTIONS`.
    """
    client = NotebookClient(book, **OPTIONS | options)
    client.km = own_kernel_manager(folder)
    return client


def kernel_environment(changes: Mapping[str, str] = {}) -> dict[str, str]:
    """Return the environment of a kernel: that of this process, with freed memory kept, and with the changes."""
    return os.environ | KEEP_MEMORY | {"MESA_BATCH": "1"} | changes


class SharedKernel:
    """One kernel for several notebooks: started for the first, emptied before each other, ended with the context."""

    def __init__(self, environment: Mapping[str, str] = {}):
        """`environment`: variables of the kernel beside those of this process."""
        self._client: NotebookClient | None = None
        self._stack = ExitStack()
        self._folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mesa-"))
        self.environment = kernel_environment({"IPYTHONDIR": self._folder} | environment)

    def __enter__(self) -> "SharedKernel":
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def client(self) -> NotebookClient:
        """Return a client whose kernel has no variables; RuntimeError if it does not start or has died."""
        if self._client is None:
            client = new_client(nbformat.v4.new_notebook(), self._folder)
            self._stack.enter_context(client.setup_kernel(env=self.environment))
            self._client = client
        else:
            self._client.wait_for_reply(self._client.kc.execute(RESET, silent=True, store_history=False))
        return self._client


class SharedKernelEngine(NBClientEngine):
    """Papermill's engine, with the kernel of a `SharedKernel`."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, kernel: SharedKernel, log_output=False, **unused) -> None:
        """Execute the notebook; papermill's other options do not apply to a kernel that is running already."""
        host = kernel.client()
        client = PapermillNotebookClient(nb_man, km=host.km, log_output=log_output, **OPTIONS)
        client.kc = host.kc
        client.execute()


#: the engine's name in papermill
ENGINE = "mesa-shared-kernel"
papermill_engines.register(ENGINE, SharedKernelEngine)
