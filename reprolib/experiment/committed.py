"""What `run --save-outputs` makes of a run: outputs of the committed notebook, its record, the pictures in README."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import nbformat
from PIL import Image

from .paths import UsageError, notebooks_folder, reference_folder, write_atomically


def commit(executed: nbformat.NotebookNode, record: bytes) -> None:
    """Make this run the committed one: its outputs in the notebook, its record in `reference/<profile>`."""
    document = json.loads(record)
    copy_outputs(executed, notebooks_folder() / f"{document['notebook']}.ipynb")
    write_atomically(reference_folder() / document["profile"] / f"{document['notebook']}.json", record)


def copy_outputs(executed: nbformat.NotebookNode, path: Path) -> None:
    """Put the outputs and execution counts of a run into the notebook at `path`, nothing else.

    Sources, metadata and cell ids stay. Raises UsageError if the sources differ.
    """
    notebook = nbformat.read(path, as_version=4)
    if [cell.source for cell in notebook.cells] != [cell.source for cell in executed.cells]:
        raise UsageError(f"{path.name} changed while it ran, its outputs are not those of its cells")
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = smaller_png(output.data["image/png"])
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    # The patch version of Python would change the file on every machine.
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    write_atomically(path, nbformat.writes(notebook) + "\n")
    save_gallery(notebook)


def smaller_png(encoded: str) -> str:
    """A figure (base64 PNG) with a palette of 256 colours; unchanged if no smaller.

    An octree keeps rare but strong colours, such as a class of few points; a median cut merged them with others.
    """
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    picture = picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    picture.save(buffer, format="PNG", optimize=True)
    smaller = base64.b64encode(buffer.getvalue()).decode()
    return min(encoded, smaller, key=len)


def save_gallery(notebook: nbformat.NotebookNode) -> None:
    """Write the first figure of each cell tagged `gallery-NAME` to `reference/gallery/NAME.png`, for the README."""
    for cell in notebook.cells:
        names = [tag.removeprefix("gallery-") for tag in cell.metadata.get("tags", []) if tag.startswith("gallery-")]
        for name in names:
            pictures = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
            if not pictures:
                raise UsageError(f"the cell tagged gallery-{name} has no figure")
            write_atomically(reference_folder() / "gallery" / f"{name}.png", base64.b64decode(pictures[0]))
