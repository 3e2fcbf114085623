"""A notebook -> the same with fresh outputs; `python -m tests.notebook` runs examples/look_at_trees.ipynb and saves it.

The kernel is this Python, specified in a folder that is removed afterwards: nothing has to be installed for it.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parent.parent / "examples" / "look_at_trees.ipynb"


def executed(path: Path) -> NotebookNode:
    """The notebook with the outputs that it has now, run in its own folder; no times stand in it."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, km=_kernel(Path(folder)), timeout=120, resources=_at(path.parent))
        client.record_timing = False
        client.execute(env={**os.environ, "IPYTHONDIR": folder, "MPLCONFIGDIR": folder, "JUPYTER_RUNTIME_DIR": folder})
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def _kernel(folder: Path) -> AsyncKernelManager:
    kernel = folder / "python3"
    kernel.mkdir()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": command, "display_name": "Python 3", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    specs = KernelSpecManager(kernel_dirs=[str(folder)], ensure_native_kernel=False)
    return AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs, transport="ipc", ip=str(folder / "ipc"))


def _at(folder: Path) -> dict[str, dict[str, str]]:
    return {"metadata": {"path": str(folder)}}


if __name__ == "__main__":
    nbformat.write(executed(NOTEBOOK), Path(sys.argv[1]) if sys.argv[1:] else NOTEBOOK)
