"""The forms in which a tuned model leaves this package: each loads in a tool that knows nothing of it."""

from medsam_tune.export.forms.base import FORMS, FormName, Tuned, read_tuned
from medsam_tune.export.forms.verify import verify_form
from medsam_tune.export.forms.write import write_form

__all__ = ["FORMS", "FormName", "Tuned", "read_tuned", "verify_form", "write_form"]
