"""``mapengine verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mapengine.runtime import Engine
from mapengine.runtime.backend_table import NAMES, PACKAGES
from mapengine.runtime.backends.registry import available_backends
from mapengine.runtime.bundle.build_record import Parity
from mapengine.runtime.bundle.manifest import Manifest
from mapengine.runtime.bundle.store import Bundle
from mapengine.runtime.checks.product_precision import (
    StageProducts,
    check_product_precision,
    listed_products,
    stage_products,
)
from mapengine.runtime.errors import BackendUnavailableError, CheckpointError, ParityError
from mapengine.runtime.system.origin import record_origin
from mapengine.runtime.writing.files import write_record
from mapengine.runtime.writing.output_checks import InputPaths

from ...console import Steps, problem, say
from ...extras import needs
from ...options import BundleArgument, Device, Revision, Threads, one_of
from ...outputs import check_files
from ...plots.figures import PLOT, check_plots
from ...plots.layers import draw_layers
from ...tables import (
    show_divergence,
    show_layers,
    show_noise,
    show_parity,
    show_precision,
    show_products,
    show_quantization,
)

if TYPE_CHECKING:
    from mapengine.export.diagnosis.layer_comparison import LayerComparison
    from mapengine.export.diagnosis.layer_noise import NoiseComparison
    from mapengine.export.model.reference import MapAnything


def verify(
    bundle: BundleArgument,
    backend: Annotated[
        str,
        typer.Option(
            **one_of(("all", "auto", *NAMES)), help="Backend to check: all that are usable, auto (the fastest), or one."
        ),
    ] = "all",
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
    device: Annotated[
        Device,
        typer.Option(help="optional: where the GPU of a bundle is missing, check only what can be checked without it."),
    ] = Device.required,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="With --model: find the first layer whose output differs from float32, and in int8 what each loses.",
        ),
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="With --layers: where to write every layer as JSON.", show_default=False
        ),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="PNG", help="With --layers: where to draw what each layer loses.", show_default=False
        ),
    ] = None,
) -> None:
    """Check that BUNDLE gives right results here.

    Its files are compared with their hashes, and its results with the reference outputs inside it. Of TensorRT plans it
    shows which attention is fused and what precision every matrix product runs in. An int8 or fp8 bundle whose products
    the backend runs in another precision fails.

    \b
    Example:
      mapengine verify build/engine
      mapengine verify build/engine --model preset:tiny --backend openvino
      mapengine verify build/engine --model preset:tiny --layers
    """

    for option, given in (("--revision", revision is not None), ("--layers", layers)):
        if given and model is None:
            raise typer.BadParameter("it belongs to --model, which is not given", param_hint=option)
    for option, file in (("--json", json_file), ("--plot", plot_file)):
        if file is not None and not layers:
            raise typer.BadParameter("it belongs to --layers, which is not given", param_hint=option)
    check_files({"--json": (json_file, "layers record"), "--plot": (plot_file, PLOT)}, InputPaths([], [bundle]))
    if plot_file is not None:
        check_plots()
    if model is not None:
        with needs("export"):
            from mapengine.export.diagnosis.layer_comparison import compare_layers
            from mapengine.export.diagnosis.layer_noise import check_comparable, compare_noise
    failures: list[ParityError] = []
    ran: list[tuple[str, list[StageProducts]]] = []
    missing: BackendUnavailableError | None = None
    measured = []
    checked: list[str] = []
    with Steps() as step:
        step("checking the files")
        opened = Bundle.open(bundle)
        manifest = opened.manifest
        rounds = layers and manifest.quantization is not None
        if rounds:
            check_comparable(manifest)
        names = _backends(backend, manifest)
        reference = None
        if model is not None:
            step(f"loading {model}")
            reference = _reference(model, revision, manifest)
        if manifest.quantization is not None and manifest.format == "plan":
            # What the builder listed is in the manifest: it is checked where the plan cannot run, too.
            listing = manifest.backends[0].name
            ran.append((listing, listed_products(manifest)))
            try:
                check_product_precision(manifest, ran[-1][1], listing)
            except ParityError as error:
                failures.append(error)
        for name in names:
            try:
                used, results = _measure(opened, name, threads, step, reference)
                measured += results
                checked.append(used)
                if manifest.quantization is not None and manifest.format == "onnx":
                    step(f"counting the products that {used} runs in {manifest.precision}")
                    ran.append((used, stage_products(opened, used, threads)))
                    check_product_precision(manifest, ran[-1][1], used)
            except ParityError as error:
                failures.append(error)
            except BackendUnavailableError as error:
                if device is Device.required:
                    raise
                missing = error
        divergence = noise = None
        if rounds and missing is None and reference is not None:
            step("comparing layer by layer")
            chosen = None if backend in ("all", "auto") else backend
            noise = compare_noise(opened, reference, chosen, threads, progress=step)
        elif layers and not rounds and reference is not None:
            step("comparing layer by layer")
            divergence = compare_layers(opened, reference, progress=step)
        opened.files.check_unchanged()  # all of this was about the bundle that was opened
        comparison = noise or divergence
        written = [] if comparison is None else _write_layers(manifest, comparison, json_file, plot_file)
    print()
    show_layers(manifest)
    show_precision(manifest)
    show_quantization(manifest)
    for name, products in ran:
        show_products(manifest, name, products)
    for title, parity in measured:
        say(f"{title}:\n")
        show_parity(parity)
    if divergence is not None:
        show_divergence(divergence)
    if noise is not None:
        show_noise(noise)
    for path in written:
        print(f"Wrote {path}")
    for failure in failures[:-1]:
        problem("Error", str(failure))
    if failures:
        raise failures[-1]
    if missing is not None:
        say(f"Not run: {missing}")
        print(f"Verified the files of {bundle}; its results were not checked on this machine")
        return
    print(f"Verified {bundle}: inside its tolerances with {' and '.join(checked)}")


def _write_layers(
    manifest: Manifest, comparison: LayerComparison | NoiseComparison, json_file: Path | None, plot_file: Path | None
) -> list[Path]:
    """Write the record and the picture of a comparison.

    Returns:
        What was written.
    """
    facts = {"model": manifest.model.id, "weights_sha256": manifest.model.weights_sha256}
    record = {"benchmark": "layers", **facts, "precision": manifest.precision, **record_origin(*PACKAGES)}
    record |= comparison.to_json()
    if json_file is not None:
        write_record(json_file, record)
    if plot_file is not None:
        draw_layers(record, plot_file)
    return [path for path in (json_file, plot_file) if path is not None]


def _reference(model: str, revision: str | None, manifest: Manifest) -> MapAnything:
    """The PyTorch model of the bundle, with as many keys.

    Raises:
        CheckpointError: it is another model.
    """
    from mapengine.export.model.network.model import with_key_shares
    from mapengine.export.model.reference import load_model

    reference = load_model(model, revision)
    if reference.weights_hash() != manifest.model.weights_sha256:
        raise CheckpointError(
            f"{model} is not the model of this bundle: its weights have another hash; give the one that the "
            f"bundle was built from ({manifest.model.id})"
        )
    return with_key_shares(reference, manifest.shares_by_block)


def _backends(choice: str, manifest: Manifest) -> list[str]:

    served = [info.name for info in manifest.backends]
    names = [name for name in available_backends() if name in served]
    # Where none is installed, loading with "auto" says so and how to get one.
    return names if choice == "all" and names else ["auto" if not names else choice]


def _measure(
    bundle: Bundle, name: str, threads: int | None, step: Steps, reference: MapAnything | None
) -> tuple[str, list[tuple[str, Parity]]]:
    """The golden check, and the comparison with PyTorch where there is a reference.

    Returns:
        The backend that ``name`` (perhaps ``auto``) meant, and what was measured, with titles.

    Raises:
        ParityError: an output is outside its tolerance.
    """

    step(f"running the golden check with {name}")
    # The hashes were compared already, and the golden check follows.
    engine = Engine.load(bundle, name, threads=threads, verify=False)
    where = f"{engine.backend} on {engine.device}"
    results = [(f"Golden check, {where}", engine.verify())]
    if reference is not None:
        from mapengine.export.bundles.onnx import measure

        step(f"comparing {engine.backend} with PyTorch")
        parity = measure(engine, reference)
        for output, tolerance in engine.manifest.golden.tolerance.items():
            # The tolerance's relative part refers to the largest value of an output, as max_rel does.
            if not parity.outputs[output].max_rel <= tolerance.rtol:
                raise ParityError(
                    f"{where} differs from PyTorch: {output} by {parity.outputs[output].max_rel:.1e} of its largest "
                    f"value, where {tolerance.rtol:.1e} is allowed; build the bundle again, or use another backend"
                )
        results.append((f"Against PyTorch, {where}", parity))
    return engine.backend, results
