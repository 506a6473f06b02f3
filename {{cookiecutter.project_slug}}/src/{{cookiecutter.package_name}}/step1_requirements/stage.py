"""Step 1 at work: check the requirements and write the requirements document."""

from ..params import REPORTS, Params
from .checks import STEPS, check_that, save_verdict
from .document import requirements_document
from .page import page, preformatted, whole_folder, write_text


def run(params: Params) -> None:
    """Write reports/1-requirements. Contradictions were refused when params.yaml was read."""
    requirements = params.requirements
    document = requirements_document(requirements)
    checks = [check_that("requirements", "typed, complete and free of contradictions", True, "consistent", "consistent")]
    with whole_folder(REPORTS / STEPS["requirements"]) as folder:
        write_text(folder / "requirements.md", document)
        write_text(folder / "index.html", page("Step 1: requirements", requirements.goal, preformatted(document)))
        save_verdict("requirements", checks, folder)
