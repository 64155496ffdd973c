"""``mapengine triton``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mapengine.runtime.system.sizes import parse_bytes
from mapengine.runtime.writing.output_checks import InputPaths

from ...console import say
from ...options import Backend, BundleArgument, value_of
from ...outputs import check_folder


def triton(
    bundle: BundleArgument,
    repository: Annotated[
        Path,
        typer.Argument(
            metavar="REPOSITORY",
            help="Folder for the models; an older one of ours is replaced, and other models in it stay.",
        ),
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Of the model that takes arrays; NAME_files takes image files.")
    ] = "mapanything",
    instances: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Engines that are loaded (on each GPU).")
    ] = 1,
    device: Annotated[
        str,
        typer.Option(metavar="auto|cpu|gpu|gpu:0,1", help="Where they run; auto is what the bundle was built for."),
    ] = "auto",
    backend: Backend = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Processor threads of an engine; its share of those that the server has if not given.",
            show_default=False,
        ),
    ] = None,
    max_views: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Views of a request; all the bundle serves if not given.", show_default=False
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Pixels of an image, before it is resized; 64 million of a file.",
            show_default=False,
        ),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Size of a request, such as 100MB; fits the largest if not given.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a model repository for NVIDIA's Triton Inference Server.

    Two models: one takes arrays, one takes JPEG and PNG files. The bundle is copied into REPOSITORY, whose README.md
    says how to start a server, in a container or without, and how to ask it.

    \b
    Example:
      mapengine triton build/engine build/triton
      python -m mapengine.serving.triton build/triton
    """
    from mapengine.serving.triton.repository import KIND, RepositoryOptions, write_repository

    with value_of("--max-bytes"):
        size = None if max_bytes is None else parse_bytes(max_bytes, "max_bytes")
    options = RepositoryOptions(name, instances, device, backend, threads, max_views, max_pixels, size)
    check_folder(repository, KIND, InputPaths([], [bundle]), option="REPOSITORY", names=options.names)
    written = write_repository(bundle, repository, options)
    engines = f"{instances} engine{'s' if instances > 1 else ''}"
    say(f"Wrote {name} ({engines} of {written.manifest.model.id}) and {options.files_name} to {repository}")
    say(f"Start a server: see {repository / 'README.md'}, or python -m mapengine.serving.triton {repository}")
