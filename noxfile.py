"""The wheel, not the checkout, on every Python that is supported: nox --session tests (or make matrix)."""

from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """Build the wheel, install it with the test extra, and run the quick tests against what was installed."""
    folder = Path(session.create_tmp())
    session.install("build")
    session.run("python", "-m", "build", "--wheel", "--outdir", str(folder), ".", silent=True)
    (wheel,) = folder.glob("kitsseg-*.whl")
    session.install(f"kitsseg[test] @ {wheel.resolve().as_uri()}")
    wheel.unlink()
    # -P keeps the checkout off the path, where its kitsseg/ would hide the installed one
    session.run(
        "python", "-P", "-c", "import kitsseg, sys; sys.exit('site-packages' not in kitsseg.__file__)"
    )
    arguments = session.posargs or ["-n", "2", "--dist", "worksteal", "-m", "not slow"]
    session.run("python", "-P", "-m", "pytest", *arguments)
