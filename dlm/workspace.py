"""A study on the W&B server: a workspace of overlaid curves, and a report made of the same panels.

    python -m dlm.workspace study=outputs/<study>/<scale> --dry-run                    print them
    python -m dlm.workspace study=outputs/<study>/<scale> entity=<user or team>        save them; needs a login

Upload the runs first (dlm.tracking). The curve of an arm is the mean over its runs, its band their range.
Needs `pip install 'dlm[workspaces]'`.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlm import config
from dlm.errors import UserError

LOSS = "nats per token"
CURVES = (
    ("Tune loss over epochs", "epoch", ("tune/nll",), LOSS),
    ("Report loss over epochs", "epoch", ("report/nll",), LOSS),
    ("Report loss over training compute", "flops", ("report/nll",), LOSS),
    ("Report loss over tokens", "tokens", ("report/nll",), LOSS),
    ("Report loss over scored targets", "targets", ("report/nll",), LOSS),
    ("Report loss after a cooldown", "epoch", ("cooled/report/nll",), LOSS),
    ("Training loss over epochs", "epoch", ("train/loss",), LOSS),
    ("Learning rate", "epoch", ("lr",), ""),
    ("Tokens per second", "epoch", ("tokens_per_second",), ""),
)


@dataclass
class Command:
    """The command line."""

    study: str = ""  # its directory
    entity: str = ""  # the user or team whose project it is; by default the one that is logged in
    project: str = "dlm"
    dry_run: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """Study and scale, as the runs' configurations have them."""
        return Path(self.study).resolve().parts[-2:]  # pyright: ignore[reportReturnType]

    @property
    def title(self) -> str:
        return ", ".join(self.names)


def panels() -> list[Any]:
    """One line plot for each of CURVES, a logarithmic axis below, one line per arm."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.LinePlot(
            title=title,
            x=x,
            y=list(y),
            log_x=True,
            title_x=x,
            title_y=unit,
            groupby=wr.Config("arm"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=100,
        )
        for title, x, y, unit in CURVES
    ]


def workspace(command: Command) -> Any:
    """The saved view: training runs of one scale, grouped by cell and arm."""
    import wandb_workspaces.workspaces as ws

    chosen = panels()
    study, scale = command.names
    wanted = [ws.Config("study") == study, ws.Config("scale") == scale]
    return ws.Workspace(
        entity=command.entity,
        project=command.project,
        name=command.title,
        sections=[
            ws.Section(name="Losses", panels=chosen[:6], is_open=True),
            ws.Section(name="Training", panels=chosen[6:]),
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=100),
        runset_settings=ws.RunsetSettings(filters=wanted, groupby=[ws.Config("cell"), ws.Config("arm")]),
    )


def report(command: Command) -> Any:
    """The report: the same panels, then the figures that the study logged of itself."""
    import wandb_workspaces.reports.v2 as wr

    def runs(name: str, job: str) -> Any:
        study, scale = command.names
        filters = f"Config('study') == '{study}' and Config('scale') == '{scale}' and JobType == '{job}'"
        return wr.Runset(entity=command.entity, project=command.project, name=name, filters=filters)  # pyright: ignore

    figures = sorted((Path(command.study) / "figures").glob("*.png"))
    media = wr.MediaBrowser(media_keys=[f"figures/{path.stem}" for path in figures], num_columns=2)
    return wr.Report(  # pyright: ignore[reportPrivateImportUsage]
        entity=command.entity,
        project=command.project,
        title=command.title,
        description="Curves of all arms on common axes, and the figures that the study has logged of itself.",
        blocks=[
            wr.H1("Curves"),
            wr.PanelGrid(runsets=[runs("runs", "train")], panels=panels()),
            wr.H1("The study's own figures"),
            wr.PanelGrid(runsets=[runs("report", "report")], panels=[media]),
        ],
    )


def main() -> None:
    arguments = ["dry_run=true" if word == "--dry-run" else word for word in sys.argv[1:]]
    command: Command = config.command_line(Command, arguments)
    if not Path(command.study).is_dir() or not command.study:
        raise UserError(f"there is no study {command.study!r}: study=outputs/<study>/<scale>")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("wandb-workspaces is not installed: pip install 'dlm[workspaces]'")
    if command.dry_run:
        command.entity = command.entity or "<entity>"
        view = workspace(command)
        print(f"workspace '{view.name}' of {command.entity}/{command.project}, and a report of the same name")
        for section in view.sections:
            print(f"  {section.name}")
            for panel in section.panels:
                print(f"    {panel.title}: {', '.join(panel.y)} against {panel.x}, grouped by arm")
        return
    import wandb

    if not wandb.login(prompt=False):
        raise UserError("not logged in to W&B: run `wandb login` or set WANDB_API_KEY; --dry-run prints it")
    command.entity = command.entity or wandb.Api().default_entity or ""
    print(workspace(command).save().url)
    print(report(command).save().url)


if __name__ == "__main__":
    config.entry(main)
