"""Run quickstart.ipynb anew, in a temporary folder, and keep its outputs: python notebooks/run.py

Paths of this machine are shortened in what is kept. Needs nbclient and ipykernel.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import clamp3

NOTEBOOK = Path(__file__).with_name("quickstart.ipynb")


def executed(path: Path) -> dict:
    """The notebook with the outputs of its cells. Raises nbclient's CellExecutionError where a cell fails."""
    import nbformat
    from nbclient import NotebookClient

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # of the command clamp3
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress"  # of tqdm, without widgets
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": folder}}).execute()
        for cell in notebook.cells:
            cell.metadata = {}  # when it was run
            if cell.cell_type == "code":
                cell.outputs = joined(cell.outputs)
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        return json.loads(text.replace(str(Path(clamp3.__file__).parent), "clamp3").replace(folder, "."))


def joined(outputs: list[dict]) -> list[dict]:
    """`outputs`, with what was printed in several pieces as one."""
    found: list[dict] = []
    for output in outputs:
        if found and output.get("name") and output.get("name") == found[-1].get("name"):
            found[-1]["text"] += output["text"]
        else:
            found.append(output)
    return found


if __name__ == "__main__":
    done = executed(NOTEBOOK)
    NOTEBOOK.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
