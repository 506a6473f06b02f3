"""The serving bundle: ONNX models, a manifest, and a checksum for every byte; nothing in it is unpickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ..step1_requirements.checks import StepFailed
from ..step1_requirements.page import write_text

MODEL, FALLBACK, MANIFEST, SUMS = "model.onnx", "fallback.onnx", "manifest.json", "SHA256SUMS"
FORMAT = 1


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest and the checksums of all files in the folder (readable by ``sha256sum -c``)."""
    write_text(folder / MANIFEST, json.dumps({"format": FORMAT, **manifest}, indent=2, ensure_ascii=False))
    names = sorted(p.name for p in folder.iterdir() if p.name != SUMS)
    write_text(folder / SUMS, "".join(f"{_sha256(folder / n)}  {n}\n" for n in names))


def open_bundle(folder: Path) -> dict[str, Any]:
    """Verify every byte and return the manifest.

    Raises:
        StepFailed: when a file is missing, changed or not listed, or the format is another.
    """
    try:
        lines = (folder / SUMS).read_bytes().decode().removesuffix("\n").split("\n")  # splitlines would take other breaks too
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        names = {p.name for p in folder.iterdir()} - {SUMS}
        for name in sorted(names | set(sums) | {MODEL, MANIFEST}):
            if sums.get(name) != _sha256(folder / name):
                raise StepFailed(f"bundle: {folder / name} is not what was sealed; build it again with `deployment`, and keep serving the old one")
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StepFailed(f"bundle: {folder} cannot be read ({error}); build it with `run`") from None
    if manifest.get("format") != FORMAT:
        raise StepFailed(f"bundle: {folder} has format {manifest.get('format')}, this code reads {FORMAT}; build it again with `deployment`")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
