"""adm data: check, pack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

COMMANDS: dict[str, type] = {}

LabelsFrom = Annotated[
    str | None,
    tyro.conf.arg(
        metavar="SOURCE",
        help="Classes from folders, prefix (of file names), none, or a CSV or JSON file.",
        help_behavior_hint="(default: as the data say)",
    ),
]
ImageSize = tyro.conf.arg(metavar="N", help="Size of training: one number, or height x width such as 32x48.")


@dataclass(frozen=True)
class Check:
    """Decode all images once and report what training would meet; exits with 3 if it would refuse them.

    PATH is whatever --data of adm train takes. Images that cannot be read are all listed.
    """

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH", help="A folder, zip, .npz, pack, ...")]
    labels_from: LabelsFrom = None
    image_size: Annotated[str | None, ImageSize] = None
    out: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="FILE",
            help="A new file for the whole report, as JSON.",
            help_behavior_hint="(default: only printed)",
        ),
    ] = None

    def run(self) -> None:
        from dataclasses import asdict
        from pathlib import Path

        from adm.cli._progress import stages
        from adm.runtime import files
        from adm.runtime.errors import DataError, UsageError
        from adm.runtime.text import shown_path
        from adm.studies._data_text import report_lines
        from adm.studies.data_check import check_data, refused
        from adm.training.defaults import parse_size

        size = parse_size(self.image_size)
        if self.out is not None:
            if Path(self.out).exists():
                raise UsageError(f"{shown_path(self.out)} exists. Choose another --out, or remove it.")
            files.require_writable(self.out)
        with stages() as shown:
            report = check_data(self.path, self.labels_from, size, on_progress=shown)
        if self.out is not None:
            files.write_json(Path(self.out), asdict(report))
        print("\n".join(report_lines(report)))
        if why := refused(report):
            raise DataError(why)


@dataclass(frozen=True)
class Pack:
    """Decode, scale and crop all images once, into a directory that trains without decoding.

    DST is then given as --data. The same command continues after an interruption.
    """

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH", help="Data, as for adm train --data.")]
    dst: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DST", help="The new directory.")]
    image_size: Annotated[str, ImageSize]
    channels: Annotated[
        int | None,
        tyro.conf.arg(metavar="1|3", help="Grey or RGB.", help_behavior_hint="(default: as the images are)"),
    ] = None
    labels_from: LabelsFrom = None
    skip_bad: Annotated[
        tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="Leave out images that cannot be read.")
    ] = False
    for_random_crop: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(help="Keep whole images, a quarter larger, for data.random_crop as classifiers use it."),
    ] = False

    def run(self) -> None:
        from pathlib import Path

        from adm.cli._progress import say, stages
        from adm.data import leaving_out_by, open_dataset, refuse_within
        from adm.data._pack_writer import check_destination, pack_images
        from adm.data.pack import Pack, is_pack
        from adm.runtime.errors import StoppedError, UsageError
        from adm.runtime.signals import stop_requests
        from adm.runtime.text import num_bytes, shown_path
        from adm.training.defaults import parse_size

        out, size = Path(self.dst), parse_size(self.image_size)
        assert size is not None
        if self.channels not in (None, 1, 3):
            raise UsageError(
                f"--channels {self.channels}: images are packed with 1 (grey) or 3 (RGB). Use one of these."
            )
        check_destination(out)
        if not is_pack(out):
            refuse_within(out, self.path, self.labels_from, "DST")
        with stages() as shown, stop_requests() as stop:

            def opening(done: int, total: int) -> None:
                shown("opening", done, total, "")
                if stop():
                    raise StoppedError("stopped while the images were opened; run the same command again.")

            with leaving_out_by("--skip-bad"):
                dataset = open_dataset(
                    self.path,
                    channels=self.channels,
                    labels_from=self.labels_from,
                    skip_bad=self.skip_bad,
                    progress=opening,
                )
            for note in getattr(dataset, "notes", ()):
                say(f"adm: note: {note}")
            pack_images(
                dataset,
                out,
                size,
                for_random_crop=self.for_random_crop,
                source=self.path,
                on_progress=lambda done, total: shown("packing", done, total, ""),
                stop_requested=stop,
            )
        pack = Pack(out)
        print(f"{shown_path(out)}  ({len(pack):,} images, {num_bytes(pack.num_bytes)})")


COMMANDS = {"data check": Check, "data pack": Pack}
