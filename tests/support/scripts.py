"""The scripts of the repository as modules."""

import importlib.util
import sys

from support import ROOT

__all__ = ["script"]


def script(name):
    """The module of ``scripts/NAME.py``, which finds the scripts beside it, as when it is run."""
    if str(ROOT / "scripts") not in sys.path:
        sys.path.append(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location(f"kitsseg_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
