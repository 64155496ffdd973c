"""``mapengine verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import Steps, problem, say
from .options import BundleArgument, Revision, Threads, VerifyBackend, import_export
from .tables import show_parity

if TYPE_CHECKING:
    from mapengine.runtime.manifest import Manifest
    from mapengine.runtime.parity_record import Parity


def verify(
    bundle: BundleArgument,
    backend: Annotated[
        VerifyBackend, typer.Option(help="Backend to check: all that are installed, auto (the fastest), or one.")
    ] = VerifyBackend.all,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Also compare with PyTorch running this model, which must be the one of the bundle.",
            show_default=False,
        ),
    ] = None,
    revision: Revision = None,
    threads: Threads = None,
) -> None:
    """Check that BUNDLE gives right results here.

    Its files are compared with their hashes, and its results with the reference outputs inside it.

    \b
    Example:
      mapengine verify build/engine
      mapengine verify build/engine --model preset:tiny --backend openvino
    """
    from mapengine.runtime.bundle import Bundle
    from mapengine.runtime.errors import CheckpointError, ParityError

    if revision is not None and model is None:
        raise typer.BadParameter("it belongs to --model, which is not given", param_hint="--revision")
    package = import_export() if model is not None else None
    failures: list[ParityError] = []
    with Steps() as step:
        step("checking the files")
        manifest = Bundle.open(bundle).manifest
        names = _backends(backend, manifest)
        reference = None
        if package is not None:
            step(f"loading {model}")
            reference = package.load_model(model, revision)
            if reference.weights_hash() != manifest.model.weights_sha256:
                raise CheckpointError(
                    f"{model} is not the model of this bundle: its weights have another hash; give the one that the "
                    f"bundle was built from ({manifest.model.id})"
                )
        measured = []
        for name in names:
            try:
                measured += _measure(bundle, name, threads, step, reference)
            except ParityError as error:
                failures.append(error)
    print()
    for title, parity in measured:
        say(f"{title}:\n")
        show_parity(parity)
    for failure in failures[:-1]:
        problem("Error", str(failure))
    if failures:
        raise failures[-1]
    print(f"Verified {bundle}: inside its tolerances with {' and '.join(names)}")


def _backends(choice: VerifyBackend, manifest: Manifest) -> list[str]:
    from mapengine.runtime.backends import available_backends

    served = [info.name for info in manifest.backends]
    names = [name for name in available_backends() if name in served]
    # Where none is installed, loading with "auto" says so and how to get one.
    return names if choice is VerifyBackend.all and names else ["auto" if not names else choice.value]


def _measure(
    bundle: Path, name: str, threads: int | None, step: Steps, reference: object | None
) -> list[tuple[str, Parity]]:
    """The golden check, and the comparison with PyTorch where there is a reference.

    Raises:
        ParityError: an output is outside its tolerance.
    """
    from mapengine.runtime import Engine
    from mapengine.runtime.errors import ParityError

    step(f"running the golden check with {name}")
    # The hashes were compared already, and the golden check follows.
    engine = Engine.load(bundle, name, threads=threads, verify=False)
    where = f"{engine.backend} on {engine.device}"
    results = [(f"Golden check, {where}", engine.verify())]
    if reference is not None:
        step(f"comparing {engine.backend} with PyTorch")
        parity = import_export().build.measure(engine, reference)
        for output, tolerance in engine.manifest.golden.tolerance.items():
            # The tolerance's relative part refers to the largest value of an output, as max_rel does.
            if not parity.outputs[output].max_rel <= tolerance.rtol:
                raise ParityError(
                    f"{where} differs from PyTorch: {output} by {parity.outputs[output].max_rel:.1e} of its largest "
                    f"value, where {tolerance.rtol:.1e} is allowed; build the bundle again, or use another backend"
                )
        results.append((f"Against PyTorch, {where}", parity))
    return results
