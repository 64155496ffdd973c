"""The program: global options, the commands, and how each ends (exit code and one line on stderr)."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from typing import Annotated, NoReturn

import typer

from .console import one_line, open_closed_streams, problem
from .signals import interrupt_on_end

_FAILED, _USAGE, _INTERRUPTED = 1, 2, 130


def _start(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """From a MapAnything checkpoint to an engine, and from images to a point cloud.

    \b
    Example:
      mapengine build preset:tiny build/engine
      mapengine run build/engine a.jpg b.jpg --out scene.glb --preview scene.png
    """
    if show_version:
        print(f"mapengine {metadata.version('mapengine')}")
        raise typer.Exit


def make_app() -> typer.Typer:
    """Return the program with all its commands, for `main` and for the reference of the documentation."""
    # Here, where an interrupt and an error end in one line. What needs an extra is imported by the command that does.
    from .commands.engines.build import build
    from .commands.engines.calibrate import calibrate
    from .commands.engines.export import export
    from .commands.engines.info import info
    from .commands.engines.plan import plan
    from .commands.engines.verify import verify
    from .commands.measurements.eval import eval_
    from .commands.measurements.plot import plot
    from .commands.measurements.profile import profile
    from .commands.scenes.batch import batch
    from .commands.scenes.demo import demo
    from .commands.scenes.map import map_
    from .commands.scenes.run import run
    from .commands.scenes.samples import samples
    from .commands.serving.app import app
    from .commands.serving.triton import triton
    from .commands.serving.view import view

    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
    # Plain help text: it reads the same on a terminal, in a pipe and in a log.
    program = typer.Typer(name="mapengine", add_completion=False, rich_markup_mode=None, context_settings=settings)
    program.callback(invoke_without_command=True)(_start)
    engines = export, calibrate, build, verify, run, map_, batch, plan, profile, plot, demo, eval_
    for command in (*engines, view, app, triton, info):
        program.command(command.__name__.rstrip("_"), context_settings=settings)(command)
    program.command(context_settings=settings, hidden=True)(samples)
    return program


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 on success, 2 on a usage error, 130 when interrupted, 1 otherwise."""
    sys.exit(_main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: Sequence[str]) -> int:
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A file name that the terminal's encoding lacks is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    interrupt_on_end()
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] if debug else arguments
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: problem("Warning", str(message))
            _invoke(list(arguments) or ["--help"])
            sys.stdout.flush()
        return 0
    except typer.Exit as leave:
        return leave.exit_code if arguments else _USAGE
    except KeyboardInterrupt as interrupt:
        problem("Interrupted", str(interrupt) or "nothing half-written is left")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of the output left. Python would complain once more when it flushes at the end.
        with suppress(OSError):
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return _FAILED
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error)


def _invoke(arguments: list[str]) -> None:
    if "" in arguments:
        # As a path it would mean the current folder.
        raise typer.BadParameter("an argument is empty; is a variable of the shell not set?")
    program = make_app()
    # Typer reads the annotations of every command that it gets, which takes as long as a call of a small engine.
    if named := [command for command in program.registered_commands if arguments[:1] == [command.name]]:
        program.registered_commands = named
    command = typer.main.get_command(program)
    # Not command.main(): it prints errors its own way, and turns an interrupt into an exit.
    with command.make_context("mapengine", arguments) as context:
        command.invoke(context)


def _report(error: Exception) -> int:
    from mapengine.runtime.errors import MapEngineError

    if isinstance(error, MapEngineError):
        problem("Error", str(error))
    elif hasattr(error, "format_message"):  # every usage error of Typer, in all its versions
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "mapengine"
        problem("Error", f"{error.format_message().rstrip('.')}; see {path} --help")
        return _USAGE
    elif isinstance(error, MemoryError):
        problem("Error", "out of memory; use fewer or smaller views, for example --size 252x252 or --minibatch-size 1")
    elif isinstance(error, OSError) and error.strerror:
        problem("Error", f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    else:
        problem("Error", f"unexpected {type(error).__name__}: {one_line(str(error))}; run it again with --debug")
    return _FAILED
